"""Sampling, defined in plain PyTorch: from the logits of a batch and a table of parameters to ids.

Every step is exact or a single rounded operation of float32 or float64, so a row's id depends on
nothing but the row: not on the batch, the device, the number of threads or the order of a sum.

1. `adjust`: logit bias, penalties and constraints, in float32.
2. Greedy rows take the first of the largest logits.
3. The other rows weigh each id: `weigh` maps (logit - largest) * log2(e) / temperature to an
   integer, 2^40 times the power of two. Integers add up to the same sum in any order.
4. Ids are ranked by logit, and equal logits by id. `keep` keeps the first `top_k`; of these the
   shortest prefix whose weights reach `top_p` of their sum; of these the ones that are at least
   `min_p` times as probable as the first.
5. `pick` adds up the weights that are left, in the order of ids, and takes the first id whose sum
   exceeds `uniform` times the total. The order of ids, not of ranks: when two nearly equal logits
   swap ranks, because a device rounds differently, the choice stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WEIGHT_BITS = 40  # the most probable id weighs 2^40, and one that is 2^41 times less probable 0
LOWEST = -64.0  # powers of two below this weigh 0 as well
# A minimax polynomial of 2^x for |x| <= 1/2, highest power first. Its relative error is 1.3e-7.
POWER = (1.53533605e-4, 0.0013398875, 0.00961843692, 0.0555033237, 0.240226477, 0.693147182, 1.0)

PART = 1024  # logits that `argmax` reduces to their largest before it looks for its index

# On a CPU the largest 1024 of 200,000 logits take 1 ms and a sort takes 17 ms. Nearly every nucleus
# fits into 1024 ids; for one that does not, 16 times as many are sorted. A GPU sorts all of them:
# it would have to wait for the host to decide.
CANDIDATES = 1024
WIDEN = 16


@dataclass(frozen=True)
class Edits:
    """What bias and penalties change: a few logits of a few rows.

    A slot stands for one id, and each id has at most one slot in its row. The first `lengths` slots
    of a row are in use, at least one.
    """

    rows: Tensor  # (edited,) int64, ascending: the rows of the batch that have slots
    lengths: Tensor  # (edited, 1) int64
    ids: Tensor  # (edited, slots) int64
    biases: Tensor  # (edited, slots) float32
    counts: Tensor  # (edited, slots) int64: times in the output; -1: not even in the prompt
    repetition: Tensor  # (edited, 1) float32, as are the others
    frequency: Tensor
    presence: Tensor


@dataclass(frozen=True)
class SamplingTable:
    """The parameters of each row of a batch, on the device of the logits.

    The tensors stay as long as the batch does. From step to step `uniforms`, the counts and ids of
    `edits`, and `bits` get new values in place.
    """

    scale: Tensor  # (rows, 1) float32: log2(e) / temperature; 0 is greedy
    top_k: Tensor  # (rows, 1) int64; the size of the vocabulary is off
    top_p: Tensor  # (rows, 1) float64; 1 is off
    log2_min_p: Tensor  # (rows, 1) float32; -inf is off
    uniforms: Tensor  # (rows, 1) float64 in [0, 1)
    sampled: Tensor  # (n,) int64, ascending: the rows that are not greedy
    ranked: Tensor  # (n,) int64: the elements of `sampled` whose rows top-k or top-p narrows
    largest_k: int  # the largest top_k in use, or 0
    edits: Edits | None = None
    bits: Tensor | None = None  # (rows, ceil(vocab / 32)) int32: id i is bit i % 32 of word i // 32


def sample(logits: Tensor, table: SamplingTable) -> Tensor:
    """The id that each row (rows, vocab) of logits samples, int64 (rows,).

    It is -1 where the adjusted logits have no finite largest: they hold NaN or +inf, or are -inf
    throughout. Logits are not changed.
    """
    logits = adjust(logits.float(), table)
    largest = logits.amax(-1, keepdim=True)  # NaN if any element is
    ids = argmax(logits)
    if len(table.sampled):
        every = len(table.sampled) == len(logits)
        rows = slice(None) if every else table.sampled
        ids[rows] = _draw(logits[rows], largest[rows], rows, table)
    return torch.where(largest[:, 0].isfinite(), ids, -1)


def adjust(logits: Tensor, table: SamplingTable) -> Tensor:
    """Float32 logits (rows, vocab) with biases and penalties, and -inf where bits are 0."""
    edits = table.edits
    if edits is not None:
        slots = torch.arange(edits.ids.shape[1], device=logits.device)
        used = slots < edits.lengths
        # What is not in use repeats the first slot: writing a logit twice does no harm.
        ids, rows = torch.where(used, edits.ids, edits.ids[:, :1]), edits.rows[:, None]
        after = logits[rows, ids] + edits.biases
        repeated = torch.where(after > 0, after / edits.repetition, after * edits.repetition)
        after = torch.where(edits.counts >= 0, repeated, after)
        after = after - edits.frequency * edits.counts.clamp(min=0).float()
        after = torch.where(edits.counts > 0, after - edits.presence, after)
        after = torch.where(used, after, after[:, :1])
        logits = logits.index_put((rows, ids), after)
    if table.bits is not None:
        logits = torch.where(unpack(table.bits, logits.shape[-1]), logits, -math.inf)
    return logits


def unpack(bits: Tensor, vocab: int) -> Tensor:
    """Booleans (rows, vocab) of packed bits (rows, ceil(vocab / 32))."""
    each = bits[:, :, None] >> torch.arange(32, dtype=torch.int32, device=bits.device) & 1
    return each.flatten(1)[:, :vocab].bool()


def argmax(logits: Tensor) -> Tensor:
    """The index of the first of the largest logits in each row (rows, vocab): within the first part
    that holds one. On a CPU torch's amax takes a twentieth of the time of its argmax.
    """
    vocab = logits.shape[-1]
    whole = vocab - vocab % PART
    tops = logits[:, :whole].unflatten(1, (vocab // PART, PART)).amax(-1)
    if whole < vocab:
        tops = torch.cat([tops, logits[:, whole:].amax(-1, keepdim=True)], dim=-1)
    places = tops.argmax(-1, keepdim=True) * PART + torch.arange(PART, device=logits.device)
    places = places.clamp_(max=vocab - 1)  # the last part repeats its last element
    return places.gather(-1, logits.gather(-1, places).argmax(-1, keepdim=True))[:, 0]


def weigh(powers: Tensor) -> Tensor:
    """2^powers as integers, 2^40 for the power 0; powers float32 and at most 0.

    The steps are spelled out because the exponential functions of libraries differ in the last bit.
    """
    powers = powers.clamp(min=LOWEST)
    whole = powers.round()
    part = powers - whole
    value = torch.full_like(part, POWER[0])
    for coefficient in POWER[1:]:
        value = value.mul_(part).add_(coefficient)
    scale = ((whole.int() + (127 + WEIGHT_BITS)) << 23).view(torch.float32)
    return value.mul_(scale).round_().long()


def _draw(logits: Tensor, largest: Tensor, rows: Tensor | slice, table: SamplingTable) -> Tensor:
    """An id for each of the rows that are not greedy; logits and largest are these rows'."""
    powers = (logits - largest) * table.scale[rows]
    weights = weigh(powers)
    if len(table.ranked):
        ranked = table.ranked
        kept = keep(logits[ranked], largest[ranked], weights[ranked], rows, table)
        weights = weights.index_put((ranked,), torch.where(kept, weights[ranked], 0))
    weights = torch.where(powers >= table.log2_min_p[rows], weights, 0)
    return pick(weights, table.uniforms[rows])


def keep(
    logits: Tensor, largest: Tensor, weights: Tensor, rows: Tensor | slice, table: SamplingTable
) -> Tensor:
    """Whether top-k and top-p keep each id, for the `ranked` among the rows.

    What they keep is a prefix of the ranking. Its length gives the smallest logit that is kept, and
    how many ids with this logit are.
    """
    vocab = logits.shape[-1]
    columns = (table.scale, table.top_k, table.top_p)
    scale, top_k, top_p = (column[rows][table.ranked] for column in columns)
    total = weights.sum(-1, keepdim=True)
    width = max(CANDIDATES, 2 * table.largest_k) if logits.device.type == "cpu" else vocab
    while True:
        width = min(width, vocab)
        values = logits.topk(width).values
        ranks = torch.arange(width, device=logits.device)
        mine = torch.where(ranks < top_k, weigh((values - largest) * scale), 0)
        mass = mine.cumsum(-1)
        whole = torch.where(top_k < vocab, mass[:, -1:], total)
        needed = (top_p * whole.to(top_p.dtype)).ceil().long()
        kept = (ranks < top_k) & ((mass - mine < needed) | (top_p >= 1))
        length = kept.sum(-1, keepdim=True).clamp(min=1)  # 0 in a row of NaN
        if width == vocab or bool((length < width).all()):
            break
        width *= WIDEN
    last = values.gather(-1, length - 1)
    equals = length - (values > last).sum(-1, keepdim=True)
    equal = logits == last
    return (logits > last) | (equal & (equal.cumsum(-1) <= equals))


def pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first index in each row (rows, n) of integers at which their sum so far exceeds the
    row's share (rows, 1) of the total; never one of weight 0 unless all are.
    """
    sums = weights.cumsum(-1)
    total = sums[:, -1:]
    goal = (uniforms * total.to(uniforms.dtype)).long().minimum(total - 1)
    return torch.searchsorted(sums, goal, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)
