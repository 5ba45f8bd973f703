"""Which experts a token goes to, and the order in which the experts take their tokens."""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossia.config import Router
from ossia.ops.backend import Backend
from ossia.ops.triton.launch import launch, power_of_2, runs
from ossia.ops.values import Routing

_LOWEST = tl.constexpr(-(1 << 31))
MOST_EXPERTS = 1024  # that one program ranks
_CHUNK = 2048  # choices that a program reads at a time


@triton.jit
def choose(
    logit, experts, weights, token, count,
    CHOSEN: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    SOFTMAX_FIRST: tl.constexpr, RENORMALIZE: tl.constexpr,
):  # fmt: skip
    """Write one token's choice, by its logits, float32 (WIDTH,); behind `count` they are minus
    infinity.
    """
    expert = tl.arange(0, WIDTH)
    slot = tl.arange(0, SLOTS)
    inside = expert < count
    # Integers in the order of the floats, NaN above all; what is taken becomes the lowest.
    key = logit.to(tl.int32, bitcast=True)
    key = tl.where(logit == logit, key ^ ((key >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)
    key = tl.where(inside, key, _LOWEST)
    ids = tl.zeros((SLOTS,), tl.int32)
    chosen = tl.full((SLOTS,), -float("inf"), tl.float32)
    for i in tl.static_range(CHOSEN):
        best = tl.max(key, 0)
        first = tl.min(tl.where(key == best, expert, WIDTH), 0)
        value = tl.sum(tl.where(expert == first, logit, 0.0), 0)
        ids = tl.where(slot == i, first, ids)
        chosen = tl.where(slot == i, value, chosen)
        if i == 0:
            top = value
        key = tl.where(expert == first, _LOWEST, key)
    power = tl.exp(chosen - top)
    if SOFTMAX_FIRST:
        power = power / tl.sum(tl.where(inside, tl.exp(logit - top), 0.0), 0)
    if not SOFTMAX_FIRST or RENORMALIZE:
        power = power / tl.sum(tl.where(slot < CHOSEN, power, 0.0), 0)
    out = token * CHOSEN + slot
    tl.store(experts + out, ids.to(tl.int64), mask=slot < CHOSEN)
    tl.store(weights + out, power, mask=slot < CHOSEN)


@triton.jit
def _route(
    logits, experts, weights, count,
    CHOSEN: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    SOFTMAX_FIRST: tl.constexpr, RENORMALIZE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, WIDTH)
    place = logits + token * count + expert
    logit = tl.load(place, mask=expert < count, other=-float("inf")).to(tl.float32)
    choose(logit, experts, weights, token, count, CHOSEN, WIDTH, SLOTS, SOFTMAX_FIRST, RENORMALIZE)


@triton.jit(do_not_specialize=["total"])
def _sort(
    experts, order, starts, owners, total,
    COUNT: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Each program finds the choices of one expert. There is no scan over experts: the choices of
    lower ones are counted again, and block b of an expert that starts at s has the number
    s // ROWS + expert + b, which no other expert's block has.
    """
    expert = tl.program_id(0)
    lane = tl.arange(0, CHUNK)
    lower = tl.zeros((CHUNK,), tl.int32)
    own = tl.zeros((CHUNK,), tl.int32)
    for i in range(0, total, CHUNK):
        id = tl.load(experts + i + lane, mask=i + lane < total, other=COUNT)
        lower += (id < expert).to(tl.int32)
        own += (id == expert).to(tl.int32)
    start = tl.sum(lower, 0)
    size = tl.sum(own, 0)
    tl.store(starts + expert, start)
    if expert == COUNT - 1:
        tl.store(starts + COUNT, start + size)
    first = start // ROWS + expert
    used = (size + ROWS - 1) // ROWS
    last = (start + size) // ROWS + expert
    for i in range(first, last + 1, CHUNK):
        block = i + lane
        owner = tl.where(block < first + used, expert, COUNT)
        tl.store(owners + block, owner, mask=block <= last)
    if size > 0:
        place = start
        for i in range(0, total, CHUNK):
            id = tl.load(experts + i + lane, mask=i + lane < total, other=COUNT)
            mine = (id == expert).to(tl.int32)
            rank = tl.cumsum(mine, 0)
            tl.store(order + place + rank - 1, i + lane, mask=mine > 0)
            place += tl.sum(mine, 0)


def choice(count: int, chosen: int, router: Router) -> dict[str, Any]:
    """The constants of `choose`, for `count` experts."""
    return {
        "CHOSEN": chosen,
        "WIDTH": power_of_2(count),
        "SLOTS": power_of_2(chosen),
        "SOFTMAX_FIRST": router is not Router.TOP_K_THEN_SOFTMAX,
        "RENORMALIZE": router is Router.SOFTMAX_THEN_TOP_K_RENORMALIZED,
    }


@dataclass(frozen=True)
class Sorted:
    """The choices (tokens * chosen) of a batch by expert, for blocks of `rows` choices of one.

    order: int32 (choices,), which choice is where; starts: int32 (experts + 1,), where an expert's
    begin; owners: int32 (blocks,), the expert of each block, or `experts` where there is no block.
    """

    order: Tensor
    starts: Tensor
    owners: Tensor
    rows: int


def sort(experts: Tensor, count: int, rows: int) -> Sorted:
    """Sort the choices of a batch, int64 (tokens, chosen), stably and without the host."""
    total, device = experts.numel(), experts.device
    order = torch.empty(total, dtype=torch.int32, device=device)
    starts = torch.empty(count + 1, dtype=torch.int32, device=device)
    owners = torch.empty(total // rows + count, dtype=torch.int32, device=device)
    chunk = min(_CHUNK, max(32, power_of_2(total)))
    launch(
        _sort, (count,), experts, order, starts, owners, total,
        COUNT=count, ROWS=rows, CHUNK=chunk, num_warps=max(1, min(8, chunk // 128)),
    )  # fmt: skip
    return Sorted(order, starts, owners, rows)


class Routes(Backend):
    """Routing."""

    def route(self, logits: Tensor, chosen: int, router: Router) -> Routing:
        """As Backend.route; of equal logits the first is chosen."""
        tokens, count = logits.shape
        if not tokens or not 0 < chosen <= count <= MOST_EXPERTS or not runs(logits):
            return super().route(logits, chosen, router)
        experts = torch.empty(tokens, chosen, dtype=torch.int64, device=logits.device)
        weights = torch.empty(tokens, chosen, dtype=torch.float32, device=logits.device)
        launch(
            _route, (tokens,), logits.contiguous(), experts, weights, count,
            **choice(count, chosen, router), num_warps=1,
        )  # fmt: skip
        return Routing(experts, weights)
