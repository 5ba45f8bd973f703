"""Seconds of a LoRA step, and of merging and saving, on some layers of gpt-oss-20b's shapes with
random weights: forward, backward and AdamW, all tokens trained, with the whole vocabulary.

    python bench/lora.py --layers 4 --tokens 512 --dtype bfloat16 [--torch] [--recompute] [--save]
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
from ossia.ops.training import Training
from ossia.train.loop import autocast
from ossia.train.objective import Objective

LEARNED = lora.LoRA(16, 32.0, 0.0, lora.TARGETS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--torch", action="store_true", help="without the native products")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--save", action="store_true", help="merge and save, too")
    given = parser.parse_args()
    torch.manual_seed(0)
    decoder = built(given.layers, Training() if given.torch else Adapted())
    if given.recompute:
        decoder.recompute_layers()
    objective = Objective(decoder, balance=0.0, z_loss=0.0)
    optimizer = torch.optim.AdamW([p for p in decoder.parameters() if p.requires_grad], fused=True)
    inputs, targets = torch.randint(0, decoder.config.vocab_size, (2, 1, given.tokens))
    times = []
    for _ in range(given.steps):
        start = time.perf_counter()
        with autocast(given.dtype):
            loss = objective(inputs, targets, None, given.tokens).total
        middle = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append([middle - start, end - middle, time.perf_counter() - end])
    best = min(times, key=sum)
    names = ("forward and loss", "backward", "optimizer")
    result = {**vars(given), "seconds": dict(zip(names, best, strict=True))}
    if given.save:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            checkpoint.save(decoder, folder, experts=ExpertFormat.MXFP4, dtype=torch.bfloat16)
            result["save"] = time.perf_counter() - start
    print(json.dumps(result))


def built(layers: int, ops: Training) -> Decoder:
    whole = ossia.config("gpt-oss-20b")
    config = replace(whole, layers=whole.layers[:layers])
    with torch.device("meta"):
        shapes = Decoder(config).state_dict()
    weights = {}
    for name, empty in shapes.items():
        if name.endswith("scales"):  # of weights of some hundredths
            weights[name] = torch.randint(118, 122, empty.shape, dtype=torch.uint8)
        elif name.endswith("blocks"):
            weights[name] = torch.randint(0, 256, empty.shape, dtype=torch.uint8)
        else:
            weights[name] = torch.randn(empty.shape) * 0.02
            if "attention" in name and empty.ndim == 2:
                weights[name] = weights[name].to(torch.bfloat16)
    decoder = Decoder.assembled(config, weights, ops).requires_grad_(False)
    lora.attach(decoder, LEARNED, torch.Generator().manual_seed(0))
    return decoder.train()


if __name__ == "__main__":
    main()
