"""Training tokens per second, beside transformers' GPT-2 in a plain training loop.

    python bench/train.py gpt2     # 124M parameters, batches of 4 x 512 tokens
    python bench/train.py small    # 6 layers x 384, vocabulary 8,192, batches of 32 x 256 tokens

Both sides have the same shapes, batch, optimizer (AdamW, gradient clipped to 1) and no dropout; the
peer computes under bfloat16 autocast by default (--peer-dtype). Each side runs in a separate
process, and steps alternate, on all cores, because shared machines drift; figures are medians.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

RATE, BETAS, DECAY, CLIP = 6e-4, (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class Case:
    rows: int
    length: int
    layers: int
    hidden: int
    heads: int
    vocab: int


CASES = {
    "gpt2": Case(rows=4, length=512, layers=12, hidden=768, heads=12, vocab=50257),
    "small": Case(rows=32, length=256, layers=6, hidden=384, heads=6, vocab=8192),
}


def batch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(case.vocab, (case.rows, case.length + 1))
    return tokens[:, :-1], tokens[:, 1:]


def ours(case: Case, dtype: str, recipe: str) -> Callable[[], None]:
    """A step of ossia's own training loop."""
    from ossia.config import GELU, AttentionConfig, Dropout, LayerConfig, MLPConfig
    from ossia.families import PRESETS
    from ossia.model import Decoder
    from ossia.ops.training import for_device
    from ossia.train.corpus.shards import TextBatches
    from ossia.train.loop import Trainer
    from ossia.train.settings import Optimizer, Precision, Settings

    attention = AttentionConfig(case.heads, case.heads, case.hidden // case.heads, bias=True)
    layer = LayerConfig(attention, MLPConfig(4 * case.hidden, GELU(), bias=True))
    config = replace(
        PRESETS["gpt2"],
        vocab_size=case.vocab,
        hidden_size=case.hidden,
        layers=(layer,) * case.layers,
        dropout=Dropout(),
    )
    decoder = Decoder(config, for_device(torch.device("cpu")))
    decoder.init_weights()
    settings = Settings(
        steps=10**6,
        eval_every=10**6,
        batch_size=case.rows,
        length=case.length,
        learning_rate=RATE,
        weight_decay=DECAY,
        clip=CLIP,
        dtype=Precision(dtype),
        optimizer=Optimizer(recipe),
    )
    text = torch.randint(case.vocab, (100 * case.rows * case.length,), dtype=torch.int32)
    batches = TextBatches([text], settings, separator=-1)
    trainer = Trainer(decoder, batches, lambda _: {}, settings, Path(tempfile.gettempdir()))
    return trainer.step  # type: ignore[return-value]


def peer(case: Case, dtype: str, _recipe: str) -> Callable[[], None]:
    """A step of a plain training loop around transformers' model, with AdamW."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=case.vocab,
        n_positions=1024,
        n_embd=case.hidden,
        n_layer=case.layers,
        n_head=case.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)

    def step() -> None:
        inputs, _ = batch(case)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=inputs, labels=inputs).loss  # it shifts the labels itself
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


SIDES = {"ossia": ours, "transformers": peer}


def work(side: str, case: str, dtype: str, recipe: str) -> None:
    """The process of one side: runs a step per input line, and prints its seconds."""
    torch.manual_seed(0)
    step = SIDES[side](CASES[case], dtype, recipe)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peer-dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="of ossia")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turns < 1:
        parser.error("--turns must be at least 1")
    if importlib.util.find_spec("transformers") is None:
        parser.error("transformers is not installed, beside which ossia is measured")
    if options.side:
        work(options.side, options.case, options.dtype, options.optimizer)
        return

    dtypes = {"ossia": options.dtype, "transformers": options.peer_dtype}
    command = [sys.executable, __file__, options.case, "--optimizer", options.optimizer]
    processes = {
        side: subprocess.Popen(
            [*command, "--side", side, "--dtype", dtypes[side]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        for side in SIDES
    }
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.turns + 1):  # the first is a warm-up and does not count
        for side, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("step\n")
            line = process.stdout.readline()
            if not line:
                sys.exit(f"error: {side} ended with exit code {process.wait()}")
            seconds[side].append(float(line))
    for process in processes.values():
        process.terminate()

    case = CASES[options.case]
    tokens = case.rows * case.length
    rates = {side: tokens / statistics.median(times[1:]) for side, times in seconds.items()}
    print(
        json.dumps(
            {
                "case": options.case,
                "batch": [case.rows, case.length],
                "threads": torch.get_num_threads(),
                "dtype": dtypes,
                "optimizer": options.optimizer,
                "tokens_per_second": {side: round(rate) for side, rate in rates.items()},
                "ratio": round(rates["ossia"] / rates["transformers"], 2),
                "seconds": {s: [round(t, 3) for t in times[1:]] for s, times in seconds.items()},
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
