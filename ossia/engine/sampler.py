"""From logits to ids, for a batch in which every request has its own parameters.

A row's token depends on its logits, parameters and seed alone, never on the rest of the batch: one
uniform number from the request's own generator picks from the cumulative distribution over ids in
a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.engine.request import SamplingParams
from ossia.errors import OssiaError

# Sorting 200,000 logits takes 17 ms on a CPU core, finding the largest 1024 of them 1 ms; nearly
# every nucleus fits in these. One that does not is looked for among 16 times as many.
CANDIDATES = 1024
WIDEN = 16

PART = 1024  # logits of which `_argmax` first asks for the largest only


class LogitsError(OssiaError):
    """The model computed no distribution for request `request_id`."""

    def __init__(self, request_id: int) -> None:
        super().__init__(
            f"the model's logits for request {request_id} are not finite numbers: its weights are "
            "damaged, or overflow in this dtype (try bfloat16 or float32)"
        )
        self.request_id = request_id


@dataclass(frozen=True)
class Sample:
    """A chosen token; log-probabilities where they were asked for."""

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


class SamplerState:
    """What sampling remembers of a request: its random numbers and, for penalties, its history."""

    def __init__(self, request_id: int, params: SamplingParams, prompt: Sequence[int]) -> None:
        self.request_id = request_id
        self.params = params
        self.prompt = prompt
        # On the CPU, so that a seed gives the same numbers on every device.
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)
        self._counts: Tensor | None = None  # (vocab,): how often each id stands in the output
        self._seen: Tensor | None = None  # (vocab,): whether it stands in prompt or output
        self._bias = tuple(params.logit_bias.items())

    @property
    def adjusts(self) -> bool:
        """Whether the logits are changed before the temperature."""
        return bool(self._bias) or self._penalizes

    @property
    def _penalizes(self) -> bool:
        params = self.params
        return (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )

    def adjust(self, logits: Tensor) -> Tensor:
        """Logits (vocab,) with bias and penalties."""
        if self._bias:
            ids, biases = zip(*self._bias, strict=True)
            index = torch.tensor(ids, device=logits.device)
            logits = logits.index_add(0, index, torch.tensor(biases, device=logits.device))
        if not self._penalizes:
            return logits
        if self._counts is None or self._seen is None:
            self._counts = torch.zeros_like(logits)
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            self._seen[torch.tensor(self.prompt, device=logits.device)] = True
        penalty = self.params.repetition_penalty
        repeated = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(self._seen, repeated, logits)
        return (
            logits
            - self.params.frequency_penalty * self._counts
            - self.params.presence_penalty * (self._counts > 0)
        )

    def record(self, token: int) -> None:
        """Remember a token of the output."""
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True

    def uniform(self) -> float:
        """The request's next random number, in [0, 1)."""
        return torch.rand((), generator=self.generator, dtype=torch.float64).item()


def sample(logits: Tensor, states: Sequence[SamplerState]) -> list[Sample]:
    """One token for each row of logits (rows, vocab) by the parameters of its state.

    Raises LogitsError, before any state has changed, if a row has NaN or +inf, or -inf alone.
    """
    logits = logits.float()
    _check(logits, states)
    tokens = _choose(_adjust(logits, states), states)
    samples = _report(logits, tokens, states)
    for state, chosen in zip(states, samples, strict=True):
        state.record(chosen.token)
    return samples


def _check(logits: Tensor, states: Sequence[SamplerState]) -> None:
    # The largest of a row is NaN if any of it is.
    finite = logits.amax(-1).isfinite().tolist()
    for state, ok in zip(states, finite, strict=True):
        if not ok:
            raise LogitsError(state.request_id)


def _adjust(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    if not any(state.adjusts for state in states):
        return logits
    rows = zip(logits, states, strict=True)
    return torch.stack([state.adjust(row) if state.adjusts else row for row, state in rows])


def _choose(logits: Tensor, states: Sequence[SamplerState]) -> list[int]:
    """The token of each row: greedy, from the whole distribution, or from its likely part."""
    greedy, whole, likely = [], [], []
    for row, state in enumerate(states):
        params = state.params
        if params.greedy:
            greedy.append(row)
        elif params.top_k or params.top_p < 1.0 or params.min_p > 0.0:
            likely.append(row)
        else:
            whole.append(row)
    tokens = torch.empty(len(states), dtype=torch.int64, device=logits.device)
    if greedy:
        tokens[greedy] = _argmax(_take(logits, torch.tensor(greedy, device=logits.device)))
    for rows, draw in ((whole, _draw_whole), (likely, _draw_likely)):
        if rows:
            params = [states[row].params for row in rows]
            uniforms = _column([states[row].uniform() for row in rows], logits)
            temperatures = _column([p.temperature for p in params], logits).float()
            # With the largest at 0 nothing overflows, however small the temperature.
            scaled = _take(logits, torch.tensor(rows, device=logits.device))
            scaled = (scaled - scaled.amax(-1, keepdim=True)).div_(temperatures)
            tokens[rows] = draw(scaled, uniforms, params)
    return tokens.tolist()


def _argmax(logits: Tensor) -> Tensor:
    """The place of the first of the largest logits in each row (rows, vocab): within the first part
    that holds one. On a CPU torch's amax takes a twentieth of the time of its argmax.
    """
    vocab = logits.shape[-1]
    whole = vocab - vocab % PART
    tops = logits[:, :whole].unflatten(1, (vocab // PART, PART)).amax(-1)
    if whole < vocab:
        tops = torch.cat([tops, logits[:, whole:].amax(-1, keepdim=True)], dim=-1)
    places = tops.argmax(-1, keepdim=True) * PART + torch.arange(PART, device=logits.device)
    places = places.clamp_(max=vocab - 1)  # the last one's repetitions come after it
    return places.gather(-1, logits.gather(-1, places).argmax(-1, keepdim=True))[:, 0]


def _draw_whole(scaled: Tensor, uniforms: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """A token of each row (rows, vocab) from its whole distribution."""
    return _pick(scaled.exp(), uniforms)


def _draw_likely(scaled: Tensor, uniforms: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """A token of each row (rows, vocab; largest 0) from what top-k, top-p and min-p leave of it.

    Ids are ranked by logit, then by id: what is kept is a prefix of that ranking, looked for among
    the largest `width` logits, and again among more where the prefix may go on past them.
    """
    vocab = scaled.shape[-1]
    top_k = _column([p.top_k or vocab for p in params], scaled)
    top_p = _column([p.top_p for p in params], scaled)
    min_p = _column([p.min_p for p in params], scaled)
    total = scaled.exp().sum(-1, keepdim=True)
    tokens = torch.empty(len(params), dtype=torch.int64, device=scaled.device)
    rows = torch.arange(len(params), device=scaled.device)
    largest_k = max(p.top_k for p in params)
    width = CANDIDATES if any(p.top_k == 0 for p in params) else 0
    width = max(width, 2 * largest_k)
    while len(rows):
        width = min(width, vocab)
        values, ids = _rank(_take(scaled, rows), width)
        weights = values.exp()
        ranks = torch.arange(width, device=scaled.device)
        keep = (ranks < top_k[rows]) & (weights >= min_p[rows]) & (weights > 0)
        mass = torch.where(ranks < top_k[rows], weights, 0).cumsum(-1, dtype=top_p.dtype)
        # Top-p counts the mass that top-k leaves: all, or what stands among the candidates.
        whole = torch.where(top_k[rows] < vocab, mass[:, -1:], total[rows])
        keep &= (mass - weights < top_p[rows] * whole) | (top_p[rows] >= 1.0)
        tokens[rows] = ids.gather(-1, _pick(weights * keep, uniforms[rows])[:, None])[:, 0]
        last = values.gather(-1, keep.sum(-1, keepdim=True) - 1)
        # Below the last kept there must be a candidate: an equal one outside might rank before it.
        rows = rows[(last <= values[:, -1:])[:, 0]] if width < vocab else rows[:0]
        width *= WIDEN
    return tokens


def _rank(scaled: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The largest `width` of each row and their ids, by value and among equals by id."""
    if width == scaled.shape[-1]:
        values, ids = torch.sort(scaled, dim=-1, descending=True, stable=True)
        return values, ids
    ids = scaled.topk(width).indices.sort(-1).values
    values = scaled.gather(-1, ids)
    values, order = torch.sort(values, dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The index in each row (rows, n) of weights at which its cumulative sum passes the row's share
    (rows, 1) of the total: never one of weight 0."""
    cumulative = weights.cumsum(-1, dtype=uniforms.dtype)
    index = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return index[:, 0].clamp(max=weights.shape[-1] - 1)


def _take(matrix: Tensor, rows: Tensor) -> Tensor:
    """Rows, in order and each once, of a matrix: itself, not a copy, if they are all of it."""
    return matrix if len(rows) == len(matrix) else matrix.index_select(0, rows)


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as (rows, 1) on `like`'s device, in float64 where the device has it."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    return torch.tensor(numbers, dtype=dtype, device=like.device)[:, None]


def _report(logits: Tensor, tokens: Sequence[int], states: Sequence[SamplerState]) -> list[Sample]:
    """Tokens with the log-probabilities asked for: log-softmax of the model's own logits."""
    samples = []
    for row, token, state in zip(logits, tokens, states, strict=True):
        wanted = state.params.logprobs
        if wanted is None:
            samples.append(Sample(token, None, ()))
            continue
        total = row.logsumexp(-1)
        top = row.topk(wanted)
        alternatives = zip(top.indices.tolist(), (top.values - total).tolist(), strict=True)
        samples.append(Sample(token, (row[token] - total).item(), tuple(alternatives)))
    return samples
