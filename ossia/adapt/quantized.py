"""MXFP4 experts: a forward pass that sees them as they will be saved, and the packed decoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ossia import families
from ossia.config import ExpertFormat, ModelConfig, MoEConfig, with_expert_format
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.model.feedforward import MoE
from ossia.ops import mxfp4
from ossia.ops.backend import Op
from ossia.ops.low_rank import LowRank


def check_format(config: ModelConfig, experts: ExpertFormat) -> None:
    """Raise OssiaError, before there is anything to lose, if no checkpoint of this model can hold
    its experts so.
    """
    try:
        families.to_hf(with_expert_format(config, experts))
    except ValueError as error:
        raise OssiaError(f"the experts cannot be saved as {experts}: {error}") from error


def expert_names(config: ModelConfig) -> list[str]:
    """The parameters that an MXFP4 checkpoint packs."""
    return [
        f"layers.{i}.feedforward.{part}.weight"
        for i, layer in enumerate(config.layers)
        if isinstance(layer.feedforward, MoEConfig)
        for part in ("gate_up", "down")
    ]


Trained = TypeVar("Trained", Tensor, LowRank)


def round_trip(weight: Trained) -> Trained:
    """The weight as it reads after packing, with the gradient of the identity (straight-through
    estimator, Bengio et al. 2013, https://arxiv.org/abs/1308.3432).
    """
    if isinstance(weight, LowRank):
        return replace(weight, rounded=True)
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
        gate_up: Trained,
        gate_up_bias: Tensor | None,
        down: Trained,
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


def pack(matrices: Iterable[Tensor]) -> tuple[mxfp4.MXFP4, float]:
    """A stack of matrices in MXFP4, one made after another, and the relative error of all."""
    packed: list[mxfp4.MXFP4] = []

    def pairs() -> Iterator[tuple[Tensor, mxfp4.MXFP4]]:
        for matrix in matrices:
            packed.append(mxfp4.quantize(matrix))
            yield matrix, packed[-1]

    error = relative_error(pairs())
    blocks, scales = zip(*((one.blocks, one.scales) for one in packed), strict=True)
    return mxfp4.MXFP4(torch.stack(blocks), torch.stack(scales)), error


def errors(weights: Mapping[str, Tensor], saved: Decoder) -> dict[str, float]:
    """Of each stack of experts that was packed to be saved, how far it is from the weights, over
    their size (root mean square).
    """
    state, found = saved.state_dict(), {}
    for name in expert_names(saved.config):
        stem = name.removesuffix(".weight")
        if f"{stem}.blocks" in state:
            stack = mxfp4.MXFP4(state[f"{stem}.blocks"], state[f"{stem}.scales"])
            pairs = ((weights[name][i], stack[i]) for i in range(stack.shape[0]))
            found[stem] = relative_error(pairs)
    return found


def relative_error(pairs: Iterable[tuple[Tensor, mxfp4.MXFP4]]) -> float:
    """Of matrices as they were and as they are packed."""
    lost = total = 0.0
    for matrix, packed in pairs:
        matrix = matrix.float()
        lost += float((mxfp4.unpack(packed, torch.float32) - matrix).square().sum())
        total += float(matrix.square().sum())
    return math.sqrt(lost / total) if total else 0.0


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
