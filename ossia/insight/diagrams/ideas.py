"""Pictures of single ideas, drawn from the formulas in `ossia.ops` and from presets."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, RoPE, SwiGLU
from ossia.families import PRESETS
from ossia.insight.diagrams.plot import Axis, Curve, plot
from ossia.insight.drawing import Drawing
from ossia.insight.svg import Heading, number
from ossia.insight.units import whole
from ossia.ops.backend import Backend
from ossia.ops.rope import frequencies

_UNITS = (12, 6)  # of the layer that `dropout` shows: columns and rows
_CELL = 11.0
_BARS = 16  # numbers of the vector that `norms` shows
_DRAFTS = (1, 2, 4, 8)


def dropout(name: str = "dropout") -> str:
    """One layer's units in two training passes and when the model runs."""
    probability = PRESETS["gpt2-xl"].dropout.residual
    drawn = random.Random(1)
    columns, rows = _UNITS
    width, gap = columns * _CELL, 28.0
    drawing = Drawing(3 * width + 2 * gap)
    scale = f"the others times {1 / (1 - probability):.2f}"
    dropped = []
    for i, title in enumerate(("a training step", "the next one", "running")):
        left = i * (width + gap)
        drawing.text((left, 12), title, "bold")
        count = 0
        for unit in range(columns * rows):
            place = left + unit % columns * _CELL, 22 + unit // columns * _CELL
            kept = i == 2 or drawn.random() >= probability
            drawing.rect(place, (_CELL - 2, _CELL - 2), "network" if kept else "frame", 1.5)
            count += not kept
        under = "all units" if i == 2 else f"{count} of {columns * rows} dropped"
        drawing.text((left, 38 + rows * _CELL), under, "small")
        drawing.text((left, 52 + rows * _CELL), "" if i == 2 else scale, "small quiet")
        dropped.append(f"{title}: {under}")
    heading = Heading(name, "Dropout: the units of one layer", f"{'; '.join(dropped)}.")
    return drawing.finish(heading, 56 + rows * _CELL)


def rope(name: str = "rope") -> str:
    """How far a text goes until each pair of dimensions has turned once, in gpt-oss."""
    config = PRESETS["gpt-oss-20b"]
    position, head = config.position, config.layers[0].attention.head_dim
    assert isinstance(position, RoPE)
    assert position.yarn is not None

    def curve(name: str, rope: RoPE) -> Curve:
        turns = (2 * math.pi / frequencies(rope, head, torch.device("cpu"))).tolist()
        return Curve(name, [*enumerate(turns)])

    pairs = head // 2 - 1
    trained, extended = position.yarn.original_context, config.context_length
    curves = [
        curve("RoPE", RoPE(position.theta)),
        curve("with YaRN", position),
        Curve(f"{whole(trained)} tokens", [(0, trained), (pairs, trained)]),
        Curve(f"{whole(extended)} tokens", [(0, extended), (pairs, extended)]),
    ]
    heading = Heading(
        name,
        "Tokens until a pair of dimensions has turned once, by pair",
        "Fast pairs are the same with YaRN and without; slow ones turn "
        f"{whole(position.yarn.factor)} times more slowly.",
    )
    up = Axis("tokens to a full turn", whole, base=10)
    return plot(heading, curves, Axis("pair of dimensions"), up)


def activations(name: str = "activations") -> str:
    """GELU, SiLU and gpt-oss's gate, of one number."""
    ops = Backend()
    x = torch.linspace(-5, 10, 121, dtype=torch.float64)
    one, zero = torch.ones_like(x), torch.zeros_like(x)

    def curve(name: str, y: Tensor) -> Curve:
        return Curve(name, [*zip(x.tolist(), y.tolist(), strict=True)])

    curves = [
        curve("GELU", ops.gelu(x)),
        curve("SiLU, up = 1", ops.gated(x, one, SwiGLU())),
        curve("gpt-oss, up = 0", ops.gated(x, zero, ClampedSwiGLU())),
    ]
    limit = ClampedSwiGLU.limit
    heading = Heading(
        name,
        "Activations: GELU, and the gates of SwiGLU and of gpt-oss",
        f"All are near 0 on the left and near x on the right; gpt-oss's stops at {limit:g}.",
    )
    return plot(heading, curves, Axis("x, or the gate"), Axis("the output"))


def norms(name: str = "norms") -> str:
    """A vector whose mean is not zero, and what the two norms make of it."""
    drawn = random.Random(4)
    x = torch.tensor([drawn.gauss(1.5, 2.0) for _ in range(_BARS)], dtype=torch.float64)
    ops, one = Backend(), torch.ones(_BARS, dtype=torch.float64)
    vectors = (
        ("x", x),
        ("LayerNorm", ops.layer_norm(x, one, torch.zeros_like(one), 1e-5)),
        ("RMSNorm", ops.rms_norm(x, one, 1e-5, round_before_weight=False).double()),
    )
    width, gap, unit, top = 140.0, 26.0, 16.0, 26.0
    highest = max(0.0, *(v.max().item() for _, v in vectors))
    lowest = min(0.0, *(v.min().item() for _, v in vectors))
    zero, bottom = top + unit * highest, top + unit * (highest - lowest)
    drawing = Drawing(3 * width + 2 * gap)
    spoken = []
    for i, (title, vector) in enumerate(vectors):
        left, step = i * (width + gap), width / _BARS
        drawing.text((left, 12), title, "bold")
        for j, value in enumerate(vector.tolist()):
            height = unit * abs(value)
            y = zero - height if value > 0 else zero
            drawing.rect((left + j * step, y), (step - 2, height), "attention", 1)
        drawing.line((left, zero), (left + width, zero), "wire")
        mean, deviation = vector.mean().item(), vector.std(correction=0).item()
        drawing.line((left, zero - unit * mean), (left + width, zero - unit * mean), "series m1")
        root = vector.square().mean().sqrt().item()
        words = f"mean {number(mean, 2)}", f"deviation {deviation:.2f}, root mean square {root:.2f}"
        drawing.text((left, bottom + 18), words[0], "small end m1")
        for line, text in enumerate(words[1].split(", ")):
            drawing.text((left, bottom + 32 + 14 * line), text, "small quiet")
        spoken.append(f"{title}: {', '.join(words)}")
    heading = Heading(name, "A vector, and what the norms make of it", f"{'; '.join(spoken)}.")
    return drawing.finish(heading, bottom + 50)


def speculation(name: str = "speculation") -> str:
    """Tokens that a step gives by how likely a drafted token is to be accepted."""
    rates = [i / 40 for i in range(41)]

    def expected(rate: float, drafted: int) -> float:
        return sum(rate**i for i in range(drafted + 1))

    curves = [Curve(f"{n} drafted", [(rate, expected(rate, n)) for rate in rates]) for n in _DRAFTS]
    heading = Heading(
        name,
        "Tokens of a step by the chance that a drafted one is accepted",
        f"From 1 where none is accepted to {_DRAFTS[-1] + 1} where all of {_DRAFTS[-1]} are.",
    )
    across, up = Axis("chance that a drafted token is accepted"), Axis("tokens of a step")
    return plot(heading, curves, across, up)


PICTURES: dict[str, Callable[[], str]] = {
    "activations": activations,
    "dropout": dropout,
    "norms": norms,
    "rope": rope,
    "speculation": speculation,
}
