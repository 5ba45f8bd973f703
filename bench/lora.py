"""Seconds of a LoRA step, and of merging and saving, on some layers of gpt-oss-20b's shapes with
random weights: forward, backward and AdamW, all tokens trained, with the whole vocabulary.

    python bench/lora.py --layers 4 --tokens 512 --dtype bfloat16 [--torch] [--recompute] [--save]
    python bench/lora.py --device cuda --model gpt-oss-20b --layers 24 --tokens 4096 --recompute

On a GPU it also gives the most bytes that were in use, beside the estimate.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace

import torch

import ossia
from ossia import checkpoint
from ossia.adapt import lora
from ossia.config import ExpertFormat
from ossia.model import Decoder
from ossia.ops.adapted import Adapted
from ossia.ops.training import Training, for_device
from ossia.train import budget
from ossia.train.device import wait_for
from ossia.train.loop import autocast
from ossia.train.objective import Objective
from ossia.train.settings import FineTuneSettings, Precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=device, default=torch.device("cpu"))
    parser.add_argument("--model", choices=("gpt-oss-20b", "gpt-oss-120b"), default="gpt-oss-20b")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--torch", action="store_true", help="without the native products")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--save", action="store_true", help="merge and save, too")
    given = parser.parse_args()
    for name in ("rank", "layers", "tokens", "steps"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1")
    torch.manual_seed(0)
    decoder = built(given)
    if given.recompute:
        decoder.recompute_layers()
    objective = Objective(decoder, balance=0.0, z_loss=0.0)
    optimizer = torch.optim.AdamW([p for p in decoder.parameters() if p.requires_grad], fused=True)
    ids = torch.randint(0, decoder.config.vocab_size, (2, 1, given.tokens))
    inputs, targets = ids.to(given.device)
    times = []
    for _ in range(given.steps):
        start = time.perf_counter()
        with autocast(given.dtype, given.device):
            loss = objective(inputs, targets, None, given.tokens).total
        middle = now(given.device)
        loss.backward()
        end = now(given.device)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append([middle - start, end - middle, now(given.device) - end])
    best = min(times, key=sum)
    names = ("forward and loss", "backward", "optimizer")
    seconds = dict(zip(names, best, strict=True))
    result = {**vars(given), "device": str(given.device), "seconds": seconds}
    if given.device.type == "cuda":
        result["card"] = torch.cuda.get_device_name(given.device)
        result["bytes"] = torch.cuda.max_memory_allocated(given.device)
        result["estimate"] = estimate(decoder, given)
    if given.save:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            checkpoint.save(decoder, folder, experts=ExpertFormat.MXFP4, dtype=torch.bfloat16)
            result["save"] = time.perf_counter() - start
    print(json.dumps(result))


def device(name: str) -> torch.device:
    """Raises ValueError, as argparse expects, for one that cannot be used."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(name) from error


def now(device: torch.device) -> float:
    wait_for(device)
    return time.perf_counter()


def estimate(decoder: Decoder, given: argparse.Namespace) -> int:
    settings = FineTuneSettings(
        model=given.model, data="", lora=True, rank=given.rank, batch_size=1, length=given.tokens,
        dtype=Precision(given.dtype), recompute=given.recompute,
    )  # fmt: skip
    return budget.adapters(decoder.config, settings, learned(given.rank), given.device).total


def learned(rank: int) -> lora.LoRA:
    return lora.LoRA(rank, 2.0 * rank, 0.0, lora.TARGETS)


def built(given: argparse.Namespace) -> Decoder:
    whole = ossia.config(given.model)
    config = replace(whole, layers=whole.layers[: given.layers])
    on_gpu = given.device.type == "cuda"
    plain = Training() if given.torch else Adapted()
    ops = for_device(given.device) if on_gpu and not given.torch else plain
    with torch.device("meta"):
        shapes = Decoder(config).state_dict()
    weights, on = {}, {"device": given.device}
    for name, empty in shapes.items():
        if name.endswith("scales"):  # of weights of some hundredths
            weights[name] = torch.randint(118, 122, empty.shape, dtype=torch.uint8, **on)
        elif name.endswith("blocks"):
            weights[name] = torch.randint(0, 256, empty.shape, dtype=torch.uint8, **on)
        else:
            weights[name] = torch.randn(empty.shape, **on) * 0.02
            adapted = "attention" in name and empty.ndim == 2
            if adapted or (on_gpu and name in lora.TABLES):  # as `lora.load_base` leaves them
                weights[name] = weights[name].to(torch.bfloat16)
    decoder = Decoder.assembled(config, weights, ops).requires_grad_(False)
    lora.attach(decoder, learned(given.rank), torch.Generator().manual_seed(0))
    return decoder.to(given.device).train()


if __name__ == "__main__":
    main()
