"""The router of a few tokens with all that stands before their experts, as one kernel: the norm,
the logits, the choice, and the packed vectors that `expert_vectors` multiplies.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossia.ops.triton.expert_vectors import WORDS, Packed, pack_words, power_of
from ossia.ops.triton.launch import begin, ceil_div, counters, launch, power_of_2, runs
from ossia.ops.triton.linear_kernels import inverse_root
from ossia.ops.triton.routing import MOST_EXPERTS, choice, choose
from ossia.ops.values import Norm, RouterWeights, Routing

_ROWS = 4  # of the router, one for each warp of a program
_MOST_CHUNKS = 32  # of a row, which are all loaded at once
_CHUNK_BYTES = 512


@triton.jit
def _logits(
    x, gain, router, bias, logits, token, block, eps, count,
    SIZE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, BIAS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A block of a token's logits; a warp has one."""
    row = block * ROWS + tl.arange(0, ROWS)
    real = row < count
    column = tl.broadcast_to(tl.arange(0, CHUNK)[None, :], (ROWS, CHUNK))
    tiles = ()
    for i in tl.static_range((SIZE + CHUNK - 1) // CHUNK):
        here = column + i * CHUNK
        mask = real[:, None] & (here < SIZE)
        tiles = tiles + (tl.load(router + row[:, None] * SIZE + here, mask=mask, other=0.0),)
    begin(EARLY)
    total = tl.zeros((ROWS, CHUNK), tl.float32)
    squares = tl.zeros((ROWS, CHUNK), tl.float32)
    for i in tl.static_range((SIZE + CHUNK - 1) // CHUNK):
        here = column + i * CHUNK
        number = tl.load(x + token * SIZE + here, mask=here < SIZE, other=0.0).to(tl.float32)
        factor = tl.load(gain + here, mask=here < SIZE, other=0.0).to(tl.float32)
        total += tiles[i].to(tl.float32) * factor * number
        squares += number * number
    logit = tl.sum(total, 1) * inverse_root(tl.sum(squares, 1), SIZE, eps)
    if BIAS:
        logit += tl.load(bias + row, mask=real, other=0.0).to(tl.float32)
    # Rounded as the definition's are, so that equal ones stay equal.
    tl.store(logits + token * count + row, logit.to(logits.dtype.element_ty), mask=real)


@triton.jit
def _normed_words(
    x, gain, planes, scales, token, block, eps,
    SIZE: tl.constexpr, DEPTH: tl.constexpr, VECTOR: tl.constexpr, WORDS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A block of the words of a token's normalised vector."""
    column = tl.arange(0, VECTOR)
    factor = tl.load(gain + column, mask=column < SIZE, other=0.0).to(tl.float32)
    begin(EARLY)
    row = x + token * SIZE
    number = tl.load(row + column, mask=column < SIZE, other=0.0).to(tl.float32)
    inverse = inverse_root(tl.sum(number * number, 0), SIZE, eps)
    power = power_of(number * factor * inverse)
    pack_words(row, gain, inverse, planes, scales, token, block, power, SIZE, DEPTH, WORDS, True)


@triton.jit
def _router(
    x, gain, router, bias, logits, experts, weights, planes, scales, counters, eps, count,
    SIZE: tl.constexpr, DEPTH: tl.constexpr, VECTOR: tl.constexpr, ROUTERS: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, WORDS: tl.constexpr, BIAS: tl.constexpr,
    CHOSEN: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    SOFTMAX_FIRST: tl.constexpr, RENORMALIZE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The first ROUTERS programs of a token compute logits, and the last of them that is done makes
    the choice. The others pack the normalised vector.
    """
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    if program < ROUTERS:
        _logits(
            x, gain, router, bias, logits, token, program, eps, count,
            SIZE, ROWS, CHUNK, BIAS, EARLY,
        )  # fmt: skip
        tl.debug_barrier()  # all of the program's writes are behind it
        if tl.atomic_add(counters + token, 1, sem="acq_rel") == ROUTERS - 1:
            tl.store(counters + token, 0)
            expert = tl.arange(0, WIDTH)
            place = logits + token * count + expert
            logit = tl.load(place, mask=expert < count, other=-float("inf"), cache_modifier=".cg")
            choose(
                logit.to(tl.float32), experts, weights, token, count,
                CHOSEN, WIDTH, SLOTS, SOFTMAX_FIRST, RENORMALIZE,
            )  # fmt: skip
    else:
        _normed_words(
            x, gain, planes, scales, token, program - ROUTERS, eps,
            SIZE, DEPTH, VECTOR, WORDS, EARLY,
        )  # fmt: skip


def suits(x: Tensor, norm: Norm, router: RouterWeights) -> bool:
    """Whether the kernel computes this."""
    weight, bias = router.weight, router.bias
    return (
        norm.bias is None
        and isinstance(weight, Tensor)
        and weight.dtype == x.dtype
        and weight.is_contiguous()
        and 0 < router.chosen <= weight.shape[0] <= MOST_EXPERTS
        and x.shape[1] * x.element_size() <= _CHUNK_BYTES * _MOST_CHUNKS
        and runs(x, norm.weight, weight, bias)
    )


def route(x: Tensor, norm: Norm, router: RouterWeights, depth: int) -> tuple[Routing, Packed]:
    """The choice for each of a few tokens x (tokens, hidden), which are not normalised yet, and the
    normalised tokens as packed vectors of `depth` columns.
    """
    weight, bias = router.weight, router.bias
    assert isinstance(weight, Tensor)
    (tokens, size), (count, _) = x.shape, weight.shape
    chosen, device = router.chosen, x.device
    logits = torch.empty(tokens, count, dtype=x.dtype, device=device)
    experts = torch.empty(tokens, chosen, dtype=torch.int64, device=device)
    weights = torch.empty(tokens, chosen, dtype=torch.float32, device=device)
    packed = Packed.empty(tokens, depth, device)
    routers = ceil_div(count, _ROWS)
    launch(
        _router, (tokens, routers + ceil_div(depth // 8, WORDS)),
        x.contiguous(), norm.weight.contiguous(), weight, weight if bias is None else bias,
        logits, experts, weights, *packed, counters(tokens, device), norm.eps, count,
        SIZE=size, DEPTH=depth, VECTOR=power_of_2(size), ROUTERS=routers, ROWS=_ROWS,
        CHUNK=_CHUNK_BYTES // x.element_size(), WORDS=WORDS, BIAS=bias is not None,
        **choice(count, chosen, router.kind), num_warps=_ROWS,
    )  # fmt: skip
    return Routing(experts, weights), packed
