"""Training with experts rounded to MXFP4."""

from __future__ import annotations

from dataclasses import replace

from ossia.model import Decoder
from ossia.model.linear import Experts
from ossia.ops.rounded import Rounded
from ossia.ops.weight import Weight
from ossia.train.parallel import Sharded


def set_rounding(decoder: Decoder, on: bool) -> None:
    """Start or stop rounding a decoder's experts in its passes; their tensors do not change."""
    for module in decoder.modules():
        if isinstance(module, Experts):
            module.replace(_rounded(module.value) if on else _plain(module.value))


def _rounded(weight: Weight) -> Weight:
    if isinstance(weight, Sharded):
        return replace(weight, inner=_rounded(weight.inner))
    return weight if isinstance(weight, Rounded) else Rounded(weight)  # type: ignore[arg-type]


def _plain(weight: Weight) -> Weight:
    if isinstance(weight, Sharded):
        return replace(weight, inner=_plain(weight.inner))
    return weight.weight if isinstance(weight, Rounded) else weight
