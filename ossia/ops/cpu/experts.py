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
    dense = [weight for weight in (gate_up, down) if isinstance(weight, Tensor)]
    native = (
        len(dense) != 1
        and is_native(x, gate_up_bias, down_bias, residual, *dense)
        and not wants_gradient(expert_weights)
        and all(1 in weight.stride()[1:] for weight in dense)
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
    gate_up, down = _kept(gate_up), _kept(down)
    bias = None if gate_up_bias is None else gate_up_bias.contiguous()
    last_bias = None if down_bias is None else down_bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    limit, alpha = clamp or (0.0, 0.0)
    out = torch.empty_like(x, dtype=torch.float32 if wide else x.dtype)
    machine().moe(
        *_layout(gate_up),
        address(bias),
        *_layout(down),
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


def _kept(weight: Weight) -> Weight:
    """The stack with packed matrices one after another."""
    if isinstance(weight, MXFP4):
        return MXFP4(weight.blocks.contiguous(), weight.scales.contiguous())
    return weight


def _layout(weight: Weight) -> tuple[int, int, int, int, bool]:
    """Where matrices and scales lie, and of dense ones: elements from matrix to matrix, from row to
    row, or from column to column if the last is true, as in gpt-oss's bfloat16 checkpoints.
    """
    if isinstance(weight, MXFP4):
        return weight.blocks.data_ptr(), weight.scales.data_ptr(), 0, 0, False
    each, row, column = weight.stride()
    transposed = column != 1
    return weight.data_ptr(), 0, each, column if transposed else row, transposed
