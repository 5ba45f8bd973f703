"""MXFP4 experts: a forward pass that sees them as they will be saved, and the packed decoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ossia.config import ExpertFormat, ModelConfig, MoEConfig, with_expert_format
from ossia.model import Decoder
from ossia.model.feedforward import MoE
from ossia.ops import mxfp4
from ossia.ops.backend import Op


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


class Rounded:
    """`ops.moe` that while it is `on` sees the experts as MXFP4 will hold them."""

    def __init__(self, inner: Op) -> None:
        self.inner, self.on = inner, False

    def __call__(
        self,
        x: Tensor,
        experts: Tensor,
        expert_weights: Tensor,
        gate_up: Tensor,
        gate_up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
        *,
        clamp: tuple[float, float] | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """As `reference.moe`."""
        if self.on:
            gate_up, down = round_trip(gate_up), round_trip(down)
        matrices = gate_up, gate_up_bias, down, down_bias
        return self.inner(x, experts, expert_weights, *matrices, clamp=clamp, residual=residual)


def attach(decoder: Decoder) -> Rounded:
    """Let all experts of a decoder go through one `Rounded`, which is off."""
    rounded = Rounded(decoder.ops.moe)
    for module in decoder.modules():
        if isinstance(module, MoE):
            module.ops = replace(module.ops, moe=rounded)
    return rounded


def unpacked(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The weights of those names in memory of their own, packed experts in float32."""
    dense = {}
    for name in names:
        stem = name.removesuffix(".weight")
        if name in weights:
            dense[name] = weights[name].clone(memory_format=torch.contiguous_format)
        else:
            packed = mxfp4.MXFP4(weights[f"{stem}.blocks"], weights[f"{stem}.scales"])
            dense[name] = mxfp4.unpack(packed, torch.float32)
    return dense


def to_save(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    experts: ExpertFormat,
    dtype: torch.dtype = torch.bfloat16,
) -> Decoder:
    """A decoder of the weights for inference: the experts in that format, everything else in
    `dtype`.

    Experts are quantized from the weights as trained, not from their rounding to `dtype`.
    """
    packs = experts is ExpertFormat.MXFP4
    config = with_expert_format(config, experts)
    packed = expert_names(config) if packs else []
    narrow = {}
    for name, weight in weights.items():
        if name in packed:
            stem = name.removesuffix(".weight")
            value = mxfp4.quantize(weight)
            narrow[f"{stem}.blocks"], narrow[f"{stem}.scales"] = value.blocks, value.scales
        else:
            narrow[name] = weight.to(dtype)
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.load_state_dict(narrow, assign=True)
    return decoder.eval().requires_grad_(False)
