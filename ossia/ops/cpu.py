"""The native CPU backend: weights are read as they lie in the checkpoint, at the speed of memory.

Native are linear layers of few tokens, experts in MXFP4, attention of few queries over pages, and
the small operations between them.
The rest (training, float16, large dense products, attention of long prompts) the reference does.

Activations in bfloat16 meet MXFP4 weights as int16 with one scale for each token, an error of 3e-5,
a hundredth of bfloat16's own; those in float32 as the sum of two such vectors, an error of 1e-7.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ossia.errors import OssiaError
from ossia.ops import reference
from ossia.ops._native import Machine, Type
from ossia.ops.backend import REFERENCE
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.paged import LayerKV
from ossia.ops.reference import Weight

_TYPES = {torch.bfloat16: Type.bf16, torch.float32: Type.f32}
# Beyond these a matrix product is bound by arithmetic, and torch's is the faster one.
_LINEAR_TOKENS = 16
_ATTENTION_TOKENS = 64


@lru_cache(maxsize=1)
def machine() -> Machine:
    """The thread pool and the kernels, made at first use.

    As many threads as torch has, but no more than a cgroup allows; the instruction set is the best
    the processor has, or OSSIA_CPU_ISA. Raises OssiaError for one it has not.
    """
    threads = min(torch.get_num_threads(), _allowed())
    try:
        return Machine(threads, os.environ.get("OSSIA_CPU_ISA", ""))
    except ValueError as error:
        raise OssiaError(str(error)) from error


def _allowed() -> int:
    """Whole processors that the control group grants."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return os.cpu_count() or 1
    return os.cpu_count() or 1 if quota == "max" else max(1, int(quota) // int(period))


def _native(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all lie on the CPU in one supported type, and no gradient is wanted."""
    tensors = [x, *(other for other in others if other is not None)]
    return (
        x.dtype in _TYPES
        and all(t.dtype == x.dtype and t.device.type == "cpu" for t in tensors)
        and not _wants_gradient(*tensors)
    )


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """As `reference.linear`."""
    if (
        isinstance(weight, MXFP4)
        or 1 not in weight.stride()
        or not _native(x, weight, bias)
        or not 0 < (tokens := x.numel() // weight.shape[1]) <= _LINEAR_TOKENS
    ):
        return reference.linear(x, weight, bias)
    rows, cols = weight.shape
    transposed = weight.stride(1) != 1  # as GPT-2's weights are
    assert x.shape[-1] == cols
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = x.new_empty((*x.shape[:-1], rows))
    kind = _TYPES[x.dtype]
    machine().linear(
        weight.data_ptr(),
        kind,
        _address(bias),
        rows,
        cols,
        weight.stride(1 if transposed else 0),
        transposed,
        x.data_ptr(),
        out.data_ptr(),
        kind,
        tokens,
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool) -> Tensor:
    """As `reference.rms_norm`."""
    if not x.numel() or not _native(x, weight):
        return reference.rms_norm(x, weight, eps, round_before_weight=round_before_weight)
    x, weight = x.contiguous(), weight.contiguous()
    size = weight.numel()
    assert x.shape[-1] == size
    out = torch.empty_like(x)
    machine().rms_norm(
        x.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        _TYPES[x.dtype],
        x.numel() // size,
        size,
        eps,
        round_before_weight,
    )
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `reference.rotate`, of packed tokens; a batch of texts goes there."""
    if x.dim() != 3 or not x.numel() or not _native(x) or cos.dtype is not torch.float32:
        return reference.rotate(x, cos, sin)
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    tokens, heads, head_dim = x.shape
    assert cos.shape == sin.shape == (tokens, head_dim // 2)
    out = torch.empty_like(x)
    machine().rotate(
        x.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        out.data_ptr(),
        _TYPES[x.dtype],
        tokens,
        heads,
        head_dim,
    )
    return out


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
) -> Tensor:
    """As `reference.moe`."""
    packed = isinstance(gate_up, MXFP4) and isinstance(down, MXFP4)
    native = packed and _native(x, gate_up_bias, down_bias) and not _wants_gradient(expert_weights)
    if not native or not x.numel():
        return reference.moe(
            x, experts, expert_weights, gate_up, gate_up_bias, down, down_bias, clamp=clamp
        )
    assert isinstance(gate_up, MXFP4)
    assert isinstance(down, MXFP4)
    count, hidden, inter = down.shape
    tokens, chosen = experts.shape
    assert gate_up.shape == (count, 2 * inter, hidden)
    assert x.shape == (tokens, hidden)
    assert expert_weights.shape == experts.shape
    # Names keep what may have been copied alive for the length of the call.
    x, experts = x.contiguous(), experts.long().contiguous()
    expert_weights = expert_weights.float().contiguous()
    blocks, scales = gate_up.blocks.contiguous(), gate_up.scales.contiguous()
    down_blocks, down_scales = down.blocks.contiguous(), down.scales.contiguous()
    bias = None if gate_up_bias is None else gate_up_bias.contiguous()
    last_bias = None if down_bias is None else down_bias.contiguous()
    limit, alpha = clamp or (0.0, 0.0)
    out = torch.empty_like(x)
    machine().moe(
        blocks.data_ptr(),
        scales.data_ptr(),
        _address(bias),
        down_blocks.data_ptr(),
        down_scales.data_ptr(),
        _address(last_bias),
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
        out.data_ptr(),
        _TYPES[x.dtype],
        tokens,
    )
    return out


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: LayerKV,
    *,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `reference.paged_attention`."""
    tokens, heads, head_dim = q.shape
    native = _native(q, k, v, kv.keys, kv.values) and not _wants_gradient(sinks)
    if not native or not 0 < tokens <= _ATTENTION_TOKENS:
        return reference.paged_attention(q, k, v, kv, sinks=sinks)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    tables = kv.tables
    table = tables.page_table.int().contiguous()
    lengths, query_lengths = tables.lengths.long(), tables.query_lengths.long()
    sinks = None if sinks is None else sinks.detach().float().contiguous()
    out = torch.empty_like(q)
    pages, page_size, kv_heads, _ = kv.keys.shape
    assert k.shape == v.shape == (tokens, kv_heads, head_dim)
    machine().paged_attention(
        kv.keys.data_ptr(),
        kv.values.data_ptr(),
        table.data_ptr(),
        lengths.data_ptr(),
        query_lengths.data_ptr(),
        pages,
        page_size,
        table.shape[1],
        table.shape[0],
        heads,
        kv_heads,
        head_dim,
        tables.window or 0,
        _address(sinks),
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        _TYPES[q.dtype],
        tokens,
    )
    return out


CPU = replace(
    REFERENCE,
    name="cpu",
    linear=linear,
    rms_norm=rms_norm,
    rotate=rotate,
    moe=moe,
    paged_attention=paged_attention,
)
