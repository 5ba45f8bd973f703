"""Tables and logits for tests of sampling: rows whose parameters have little in common."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from ossia.engine.request import SamplingParams
from ossia.engine.sampler import Batch
from ossia.engine.sampler_state import SamplerState
from ossia.ops.sampling import SamplingTable
from tests.engine.constraints import Allows


def table_of(params: list[SamplingParams], vocab: int, **states) -> SamplingTable:
    """A table for rows of these parameters; prompts are [0]."""
    rows = [SamplerState(i, p, [0], **states) for i, p in enumerate(params)]
    batch = Batch(rows, vocab, CPU)
    batch.prepare(rows)
    return batch.table


CPU = torch.device("cpu")

TEMPERATURES = (0.0, 1e-4, 0.1, 0.7, 1.0, 1.0, 1.0, 2.0, 50.0, 1e6, 1e38, 1e300)


def random_params(draw: random.Random, vocab: int) -> SamplingParams:
    def some(likely: float, value):
        return value() if draw.random() < likely else None

    options = {
        "temperature": draw.choice(TEMPERATURES),
        "top_k": some(0.3, lambda: draw.choice([1, 2, 5, 50, 700, vocab, vocab + 1])),
        "top_p": some(0.5, lambda: draw.choice([1e-300, 1e-6, 0.1, 0.5, 0.95, 0.999, 1 - 1e-15])),
        "min_p": some(0.2, lambda: draw.choice([1e-30, 1e-4, 0.05, 0.5, 1.0])),
        "repetition_penalty": some(0.1, lambda: draw.choice([0.5, 1.3])),
        "frequency_penalty": some(0.1, lambda: draw.choice([-0.3, 0.7])),
        "presence_penalty": some(0.1, lambda: draw.choice([-1.0, 2])),
        "logit_bias": some(0.1, lambda: {draw.randrange(vocab): draw.choice([-100, 3, 0.5])}),
        "seed": draw.randrange(2**32),
    }
    return SamplingParams(**{name: value for name, value in options.items() if value is not None})


def random_states(draw: random.Random, rows: int, vocab: int) -> list[SamplerState]:
    """States in the middle of their outputs, a tenth of them under a constraint."""
    states = []
    for row in range(rows):
        constraint = None
        if draw.random() < 0.1:
            constraint = Allows([draw.randrange(vocab) for _ in range(draw.choice([1, 40]))])
        prompt = [draw.randrange(vocab) for _ in range(draw.choice([1, 9, 100]))]
        states.append(SamplerState(row, random_params(draw, vocab), prompt, constraint))
        for _ in range(draw.choice([0, 1, 30])):
            states[-1].record(draw.randrange(min(vocab, 40)))
    return states


def random_logits(draw: random.Random, rows: int, vocab: int) -> Tensor:
    """Rows of different kinds: peaked, flat, coarse, with few values, with ids excluded."""
    generator = torch.Generator().manual_seed(draw.randrange(2**32))
    logits = torch.randn(rows, vocab, generator=generator)
    for row in logits:
        kind = draw.randrange(8)
        if kind == 0:
            row.mul_(10)
        elif kind == 1:
            row.mul_(3).copy_(row.bfloat16())
        elif kind == 2:
            row.round_()
        elif kind == 3:
            row.fill_(draw.choice([0.0, -5.25, 3e38]))
        elif kind == 4:
            row[torch.rand(vocab, generator=generator) < 0.9] = -math.inf
            row[draw.randrange(vocab)] = 1.0
        elif kind == 5:
            row.mul_(0.01)[draw.randrange(vocab)] = 20.0
        elif kind == 6:
            row.mul_(1e37)
    return logits
