"""MXFP4 experts: a forward pass that sees them as they will be saved, and the packed decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.config import ExpertFormat, ModelConfig, MoEConfig, with_expert_format
from ossia.model import Decoder
from ossia.ops import mxfp4


def expert_names(config: ModelConfig) -> list[str]:
    """The parameters that an MXFP4 checkpoint packs."""
    return [
        f"layers.{i}.feedforward.{part}.weight"
        for i, layer in enumerate(config.layers)
        if isinstance(layer.feedforward, MoEConfig)
        for part in ("gate_up", "down")
    ]


def round_trip(weight: Tensor) -> Tensor:
    """The weight as it reads after packing, with the gradient of the identity (straight-through
    estimator, Bengio et al. 2013, https://arxiv.org/abs/1308.3432).
    """
    packed = mxfp4.unpack(mxfp4.quantize(weight), weight.dtype)
    return weight + (packed - weight.detach())


def as_saved(decoder: Decoder) -> dict[str, Tensor]:
    """The experts' weights by name as MXFP4 will hold them, for torch.func.functional_call."""
    return {name: round_trip(decoder.get_parameter(name)) for name in expert_names(decoder.config)}


def to_save(decoder: Decoder, experts: ExpertFormat) -> Decoder:
    """A copy for inference: the experts in that format, everything else in bfloat16.

    Experts are quantized from the weights as trained, not from their bfloat16 rounding.
    """
    packs = experts is ExpertFormat.MXFP4
    config = with_expert_format(decoder.config, experts)
    packed = expert_names(config) if packs else []
    weights = {}
    for name, weight in decoder.state_dict().items():
        if name in packed:
            stem = name.removesuffix(".weight")
            value = mxfp4.quantize(weight)
            weights[f"{stem}.blocks"], weights[f"{stem}.scales"] = value.blocks, value.scales
        else:
            weights[name] = weight.to(torch.bfloat16)
    with torch.device("meta"):
        copy = Decoder(config, decoder.ops)
    copy.load_state_dict(weights, assign=True)
    return copy.eval().requires_grad_(False)
