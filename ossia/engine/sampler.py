"""From logits to ids, for a batch in which every request has its own parameters.

What is computed is defined in `ossia.ops.sampling`. Here requests become rows of a `SamplingTable`,
which is kept until the batch changes, and ids become samples.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.engine.logprobs import log_probabilities
from ossia.engine.request import RequestError, SamplingParams
from ossia.engine.sampler_state import ConstraintError, SamplerState, penalizes
from ossia.engine.staging import send, sent
from ossia.ops import Backend
from ossia.ops.sampling import Edits, SamplingTable

SPARE = 256  # slots for ids that a row has not seen yet, before the table is rebuilt


class LogitsError(RequestError):
    """The model computed no distribution for request `request_id`."""

    def __init__(self, request_id: int) -> None:
        super().__init__(
            request_id,
            f"the model's logits for request {request_id} are not finite numbers: its weights are "
            "damaged, or overflow in this dtype (try bfloat16 or float32)",
        )


@dataclass(frozen=True)
class Sample:
    """A chosen token; log-probabilities where they were asked for."""

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


class Drawn:
    """Ids, int64 (rows,), that the device samples from these states, on their way to the host."""

    def __init__(self, ids: Tensor, states: Sequence[SamplerState]) -> None:
        self.ids, self.states = ids, states
        self._host, self._arrived = ids, None
        if ids.is_cuda:
            self._host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
            self._host.copy_(ids, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(ids.device))

    def tolist(self) -> list[int]:
        """Wait for them, and for nothing that the device was given since."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()


class Sampler:
    """Samples a token for each request of a batch."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._batch: Batch | None = None

    @torch.inference_mode()
    def sample(self, logits: Tensor, states: Sequence[SamplerState]) -> list[Sample]:
        """One token for each row of logits (rows, vocab) by the parameters of its state, -1 where a
        drafted state has none.

        Raises a RequestError that names the first request without a token, before any state has
        changed: LogitsError if its logits hold NaN or +inf, or are -inf throughout; ConstraintError
        if its constraint fails or allows no id that the logits give any probability.
        """
        return self.finish(self.draw(logits, states), logits)

    @torch.inference_mode()
    def draw(self, logits: Tensor, states: Sequence[SamplerState], ahead: int = 0) -> Drawn:
        """The first half of `sample`: the device is told to, and nothing waits for it.

        ahead: how many tokens were drawn from each state that it does not know of yet; of `plain`
        ones only.
        """
        if not states:
            return Drawn(torch.empty(0, dtype=torch.int64), states)
        return Drawn(self._draw(logits, states, ahead), states)

    def finish(
        self, drawn: Drawn, logits: Tensor | None, unused: Container[int] = ()
    ) -> list[Sample]:
        """The second half. logits: None if the device may have written others there since, because
        more was drawn; then all states are plain. unused: rows that nobody needs a token of.
        """
        tokens, states = drawn.tolist(), drawn.states
        for row, (token, state) in enumerate(zip(tokens, states, strict=True)):
            if token < 0 and not state.drafted and row not in unused:
                if logits is None or not logits[row].amax().isfinite():
                    raise LogitsError(state.request_id)
                problem = "allows no id that the model gives any probability"
                raise ConstraintError(state.request_id, problem)
        if logits is None:
            for token, state in zip(tokens, states, strict=True):
                state.record(token)
            return [Sample(token, None, ()) for token in tokens]
        samples = _report(logits, tokens, states)
        if self._batch is not None and states:
            self._batch.record(tokens)
        return samples

    def ids(self, logits: Tensor, states: Sequence[SamplerState]) -> list[int]:
        """As `sample`, but only the ids, -1 where there is none, and no state changes."""
        ids = self._draw(logits, states).tolist() if states else []
        if any(state.history is not None for state in states):
            self._batch = None  # its table would not learn of the tokens
        return ids

    def _draw(self, logits: Tensor, states: Sequence[SamplerState], ahead: int = 0) -> Tensor:
        if self._batch is None or not self._batch.serves(logits, states):
            self._batch = Batch(states, logits.shape[-1], logits.device)
        self._batch.prepare(states, ahead)
        return self._backend.sample(logits, self._batch.table)


class Batch:
    """The table of a batch of requests, kept current from step to step."""

    def __init__(self, states: Sequence[SamplerState], vocab: int, device: torch.device) -> None:
        self._states = tuple(states)
        self._vocab = vocab
        self._device = device
        # Apple's GPUs have no float64; there a pick near a boundary may differ.
        self._real = torch.float32 if device.type == "mps" else torch.float64
        self._full = False  # a row has no slot left for an id that it had not seen
        self._bits: Tensor | None = None  # on the host; `_words` are views of its rows
        self._words: dict[int, memoryview] = {}
        self.table = self._table()

    def serves(self, logits: Tensor, states: Sequence[SamplerState]) -> bool:
        """Whether the table is still right for these requests in this order."""
        return (
            not self._full
            and len(states) == len(self._states)
            and all(a is b or _alike(a, b) for a, b in zip(states, self._states, strict=True))
            and logits.shape[-1] == self._vocab
            and logits.device == self._device
        )

    def prepare(self, states: Sequence[SamplerState], ahead: int = 0) -> None:
        """Fill in what changes every step: the random numbers, which may be those of tokens `ahead`
        of the next, and the constraints' bits.
        """
        self._states, table = tuple(states), self.table
        if len(table.sampled):
            numbers = [0.0 if s.params.greedy else s.uniform(ahead) for s in self._states]
            send(torch.tensor(numbers, dtype=self._real)[:, None], table.uniforms)
        for row, words in self._words.items():
            words[:] = memoryview(bytes(words.nbytes)).cast("I")
            try:
                self._states[row].mask(words)
            except ConstraintError:
                if not self._states[row].drafted:
                    raise
                words[:] = memoryview(bytes(words.nbytes)).cast("I")
        if table.bits is not None and self._bits is not None and table.bits is not self._bits:
            send(self._bits, table.bits)

    def record(self, tokens: Sequence[int]) -> None:
        """Remember a token of each row; drafted states are used only once."""
        for state, token in zip(self._states, tokens, strict=True):
            if not state.drafted:
                state.record(token)
        edits = self.table.edits
        if edits is None or any(state.drafted for state in self._states):
            return
        edited = [(s, t) for s, t in zip(self._states, tokens, strict=True) if s.history]
        changes = []  # (row of the edits, slot, id, its count, slots in use)
        for row, (state, token) in enumerate(edited):
            history = state.history
            if history is not None and penalizes(state.params):
                slot = history.slots[token]
                changes.append((row, slot, token, history.counts[slot], len(history.ids)))
        if any(slots > edits.ids.shape[1] for *_, slots in changes):
            self._full = True
        elif changes:
            rows, slots, ids, counts, lengths = sent(
                torch.tensor(changes).T, torch.int64, self._device
            )
            edits.ids[rows, slots] = ids
            edits.counts[rows, slots] = counts
            edits.lengths[rows, 0] = lengths

    def _table(self) -> SamplingTable:
        params = [state.params for state in self._states]
        vocab = self._vocab
        top_k = [min(p.top_k or vocab, vocab) for p in params]
        sampled = [row for row, p in enumerate(params) if not p.greedy]
        ranked = [i for i, row in enumerate(sampled) if top_k[row] < vocab or params[row].top_p < 1]
        return SamplingTable(
            scale=self._column([_scale(p) for p in params], torch.float32),
            top_k=self._column(top_k, torch.int64),
            top_p=self._column([p.top_p for p in params], self._real),
            log2_min_p=self._column([_log2(p.min_p) for p in params], torch.float32),
            uniforms=self._column([0.0] * len(params), self._real),
            sampled=sent(sampled, torch.int64, self._device),
            ranked=sent(ranked, torch.int64, self._device),
            largest_k=max((top_k[sampled[i]] % vocab for i in ranked), default=0),
            edits=self._edits(),
            bits=self._allowed(),
        )

    def _edits(self) -> Edits | None:
        edited = [(row, s.history) for row, s in enumerate(self._states) if s.history is not None]
        if not edited:
            return None
        histories = [history for _, history in edited]
        params = [self._states[row].params for row, _ in edited]
        slots = max(len(history.ids) for history in histories) + SPARE

        def padded(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
            stacked = torch.zeros(len(rows), slots, dtype=dtype)
            for target, row in zip(stacked, rows, strict=True):
                target[: len(row)] = torch.tensor(row, dtype=dtype)
            return sent(stacked, dtype, self._device)

        real, whole = torch.float32, torch.int64
        return Edits(
            rows=sent([row for row, _ in edited], whole, self._device),
            lengths=self._column([len(history.ids) for history in histories], whole),
            ids=padded([history.ids for history in histories], whole),
            biases=padded([history.biases for history in histories], real),
            counts=padded([history.counts for history in histories], whole),
            repetition=self._column([p.repetition_penalty for p in params], real),
            frequency=self._column([p.frequency_penalty for p in params], real),
            presence=self._column([p.presence_penalty for p in params], real),
        )

    def _allowed(self) -> Tensor | None:
        """Bits for the batch, all set in rows without a constraint; None if no row has one."""
        constrained = [row for row, s in enumerate(self._states) if s.constraint is not None]
        if not constrained:
            return None
        words = -(-self._vocab // 32)
        memory = bytearray(b"\xff") * (4 * words * len(self._states))
        for row in constrained:
            self._words[row] = memoryview(memory)[4 * words * row : 4 * words * (row + 1)].cast("I")
        self._bits = torch.frombuffer(memory, dtype=torch.int32).view(len(self._states), words)
        return self._bits.to(self._device)

    def _column(self, numbers: Sequence[float], dtype: torch.dtype) -> Tensor:
        return sent(numbers, dtype, self._device)[:, None]


def _alike(a: SamplerState, b: SamplerState) -> bool:
    """Whether two states have the same row of a table, random numbers aside."""
    plain = a.history is b.history is a.constraint is b.constraint is None
    return plain and a.params is b.params


def _scale(params: SamplingParams) -> float:
    """What turns differences of logits into powers of two; 0 is greedy."""
    # A temperature too large for float32 is as good as any other that makes all ids equal.
    return 0.0 if params.greedy else math.log2(math.e) / min(params.temperature, 1e30)


def _log2(probability: float) -> float:
    return math.log2(probability) if probability > 0 else -math.inf


def _report(logits: Tensor, tokens: Sequence[int], states: Sequence[SamplerState]) -> list[Sample]:
    """Tokens with the log-probabilities asked for: log-softmax of the model's own logits."""
    samples = [Sample(token, None, ()) for token in tokens]
    rows_by_wanted: dict[int, list[int]] = {}
    for row, state in enumerate(states):
        if state.params.logprobs is not None and tokens[row] >= 0:
            rows_by_wanted.setdefault(state.params.logprobs, []).append(row)
    # By number: with ties, the largest 2 of a row need not begin the largest 5 that torch finds.
    for wanted, rows in rows_by_wanted.items():
        found = log_probabilities(logits[rows], [tokens[row] for row in rows], wanted)
        for row, scored in zip(rows, found, strict=True):
            samples[row] = Sample(scored.token, scored.logprob, scored.top)
    return samples
