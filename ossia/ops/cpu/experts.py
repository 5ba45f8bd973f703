"""The experts of a layer as one operation."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops import reference
from ossia.ops.cpu.native import TYPES, address, is_native, machine, wants_gradient
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.reference import Weight

# Beyond these torch, which uses all threads, is the faster one.
_ROUTE_TOKENS = 64


def route(
    logits: Tensor, chosen: int, *, softmax_first: bool, renormalize: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.route`."""
    tokens, experts = logits.shape
    if not 0 < tokens <= _ROUTE_TOKENS or not 0 < chosen <= experts or not is_native(logits):
        return reference.route(logits, chosen, softmax_first=softmax_first, renormalize=renormalize)
    logits = logits.contiguous()
    ids = torch.empty(tokens, chosen, dtype=torch.int64)
    weights = torch.empty(tokens, chosen, dtype=torch.float32)
    machine().route(
        logits.data_ptr(),
        ids.data_ptr(),
        weights.data_ptr(),
        TYPES[logits.dtype],
        tokens,
        experts,
        chosen,
        softmax_first,
        renormalize,
    )
    return ids, weights


def moe(
    x: Tensor,
    experts: Tensor,
    expert_weights: Tensor,
    gate_up: Weight,
    gate_up_bias: Tensor | None,
    down: Weight,
    down_bias: Tensor | None,
    *,
    clamp: tuple[float, float] | None = None,
    residual: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """As `reference.moe`."""
    native = (
        isinstance(gate_up, MXFP4)
        and isinstance(down, MXFP4)
        and is_native(x, gate_up_bias, down_bias, residual)
        and not wants_gradient(expert_weights)
    )
    if not native or not x.numel():
        return reference.moe(
            x,
            experts,
            expert_weights,
            gate_up,
            gate_up_bias,
            down,
            down_bias,
            clamp=clamp,
            residual=residual,
            wide=wide,
        )
    assert isinstance(gate_up, MXFP4)
    assert isinstance(down, MXFP4)
    count, hidden, inter = down.shape
    tokens, chosen = experts.shape
    assert gate_up.shape == (count, 2 * inter, hidden)
    assert x.shape == (tokens, hidden)
    assert expert_weights.shape == experts.shape
    assert gate_up_bias is None or gate_up_bias.shape == (count, 2 * inter)
    assert down_bias is None or down_bias.shape == (count, hidden)
    assert residual is None or residual.shape == x.shape
    # Names keep what may have been copied alive for the length of the call.
    x, experts = x.contiguous(), experts.long().contiguous()
    expert_weights = expert_weights.float().contiguous()
    blocks, scales = gate_up.blocks.contiguous(), gate_up.scales.contiguous()
    down_blocks, down_scales = down.blocks.contiguous(), down.scales.contiguous()
    bias = None if gate_up_bias is None else gate_up_bias.contiguous()
    last_bias = None if down_bias is None else down_bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    limit, alpha = clamp or (0.0, 0.0)
    out = torch.empty_like(x, dtype=torch.float32 if wide else x.dtype)
    machine().moe(
        blocks.data_ptr(),
        scales.data_ptr(),
        address(bias),
        down_blocks.data_ptr(),
        down_scales.data_ptr(),
        address(last_bias),
        count,
        chosen,
        hidden,
        inter,
        clamp is not None,
        limit,
        alpha,
        x.data_ptr(),
        experts.data_ptr(),
        expert_weights.data_ptr(),
        address(residual),
        out.data_ptr(),
        TYPES[x.dtype],
        TYPES[out.dtype],
        tokens,
    )
    return out
