"""What sampling remembers of a request: its random stream, its history and its constraint."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from copy import copy

from ossia.engine.request import Constraint, RequestError, SamplingParams

MASK_64 = 2**64 - 1


class ConstraintError(RequestError):
    """The constraint of request `request_id` left no id to sample, or failed."""

    def __init__(self, request_id: int, problem: str) -> None:
        super().__init__(request_id, f"the constraint of request {request_id} {problem}")


def split_mix(state: int, index: int) -> int:
    """Output `index` (64 bits) of SplitMix64 from that state (Steele, Lea and Flood 2014,
    https://doi.org/10.1145/2660193.2660195).
    """
    word = (state + (index + 1) * 0x9E3779B97F4A7C15) & MASK_64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK_64
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK_64
    return word ^ word >> 31


class RandomStream:
    """Random numbers of one request, on the host, so that a seed gives the same on every device.

    They are functions of a counter: a step that is repeated draws the same number.
    """

    def __init__(self, seed: int | None) -> None:
        # Neighbouring seeds start at states far apart.
        self._state = secrets.randbits(64) if seed is None else split_mix(seed, 0)

    def uniform(self, index: int) -> float:
        """Number `index` of the stream, uniform in [0, 1) with 53 bits."""
        return (split_mix(self._state, index) >> 11) * 2.0**-53


class History:
    """The ids whose logits a request's bias and penalties change: a slot for each."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        biased = params.logit_bias
        seen = dict.fromkeys(prompt) if penalizes(params) else {}
        # Without any, id 0 is a placeholder with no bias and no penalty.
        ids = [*biased, *(token for token in seen if token not in biased)] or [0]
        self.slots = {token: slot for slot, token in enumerate(ids)}
        self.ids = ids
        self.biases = [*map(float, biased.values()), *[0.0] * (len(ids) - len(biased))]
        self.counts = [0 if token in seen else -1 for token in ids]

    def copy(self) -> History:
        """An independent history of the same tokens."""
        other = copy(self)
        other.slots, other.ids = dict(self.slots), list(self.ids)
        other.biases, other.counts = list(self.biases), list(self.counts)
        return other

    def record(self, token: int) -> None:
        """Count a token of the output."""
        if not penalizes(self._params):
            return
        slot = self.slots.setdefault(token, len(self.ids))
        if slot == len(self.ids):
            self.ids.append(token)
            self.biases.append(0.0)
            self.counts.append(0)
        self.counts[slot] = max(self.counts[slot], 0) + 1


def penalizes(params: SamplingParams) -> bool:
    """Whether logits depend on the text so far."""
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


class SamplerState:
    """What sampling remembers of a request: how many tokens it drew, its history for penalties, and
    its constraint."""

    def __init__(
        self,
        request_id: int,
        params: SamplingParams,
        prompt: Sequence[int],
        constraint: Constraint | None = None,
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.constraint = constraint
        self.random = RandomStream(params.seed)
        self.drawn = 0
        edits = bool(params.logit_bias) or penalizes(params)
        self.history = History(params, prompt) if edits else None
        self.drafted = False  # whether it holds only if a drafted token is the one sampled
        self._unaccepted: list[int] = []  # tokens that the constraint has not been told
        self._allowed: memoryview | None = None  # the bits, if they are known

    @property
    def plain(self) -> bool:
        """Whether all that matters of the tokens so far is their number, and nothing but the next
        one is wanted.
        """
        return self.history is None and self.constraint is None and self.params.logprobs is None

    def uniform(self, ahead: int = 0) -> float:
        """The number that picks the request's next token, or one `ahead` of it."""
        return self.random.uniform(self.drawn + ahead)

    def mask(self, bits: memoryview) -> None:
        """Bring the constraint up to date and have it set the bits of the ids it allows.

        Raises ConstraintError for whatever it raises.
        """
        assert self.constraint is not None
        if self._allowed is not None:
            bits[:] = self._allowed
            return
        try:
            if self._unaccepted:
                self.constraint.accept(self._unaccepted)
                self._unaccepted = []
            self.constraint.mask(bits)
        except Exception as error:
            problem = f"failed with {type(error).__name__}: {error}"
            raise ConstraintError(self.request_id, problem) from error

    def record(self, token: int) -> None:
        """Remember a token of the output."""
        self.drawn += 1
        if self.history is not None:
            self.history.record(token)
        if self.constraint is not None:
            self._unaccepted.append(token)
            self._allowed = None

    def after(self, token: int, vocab_size: int) -> SamplerState | None:
        """The state in which the next token would be sampled if a drafted one were sampled now;
        None if the constraint does not allow it, or fails.
        """
        other = copy(self)
        other.drafted = True
        if self.history is not None:
            other.history = self.history.copy()
        if self.constraint is not None:
            if not self._allows(token, vocab_size):
                return None
            try:
                other.constraint = self.constraint.copy()
            except Exception:  # what it is needed for without drafts tells what is wrong with it
                return None
            other._unaccepted = []
        other.record(token)
        return other

    def _allows(self, token: int, vocab_size: int) -> bool:
        """Whether the constraint allows a token; the bits are kept for `mask`."""
        if self._allowed is None:
            allowed = memoryview(bytearray(4 * -(-vocab_size // 32))).cast("I")
            try:
                self.mask(allowed)
            except ConstraintError:
                return False
            self._allowed = allowed
        return bool(self._allowed[token // 32] >> token % 32 & 1)
