"""Who runs in the next step: first come, first served; long prompts in chunks, beside the sequences
that already decode, so that nobody's stream stalls while another's prompt is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from ossia.engine.pages import PageAllocator
from ossia.engine.request import FinishReason, TokenOutput
from ossia.engine.sampler import Sample, SamplerState


@dataclass(eq=False)
class Sequence:
    """A request at work: its tokens so far, of which the first `computed` lie in the pages."""

    id: int
    tokens: list[int]
    max_length: int  # prompt and output together
    stop_ids: frozenset[int]
    sampler: SamplerState
    computed: int = 0

    @property
    def positions(self) -> int:
        """The most positions it can come to hold: its last token is delivered but never read."""
        return self.max_length - 1

    @property
    def pending(self) -> int:
        """Tokens not yet read: 1 while decoding, more while the prompt is read."""
        return len(self.tokens) - self.computed

    def append(self, token: int) -> FinishReason | None:
        """Add a sampled token; the reason if it is the last."""
        self.tokens.append(token)
        if token in self.stop_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.max_length else None


@dataclass(frozen=True)
class Chunk:
    """A sequence's share of a step: its next `count` tokens."""

    sequence: Sequence
    count: int

    @property
    def start(self) -> int:
        return self.sequence.computed

    @property
    def end(self) -> int:
        return self.sequence.computed + self.count

    @property
    def samples(self) -> bool:
        """Whether the step reads the sequence's last token, and so knows the next."""
        return self.count == self.sequence.pending


class Scheduler:
    """The waiting and the running; a step reads at most `prefill_chunk` prompt tokens in all."""

    def __init__(self, pages: PageAllocator, *, prefill_chunk: int, max_batch: int) -> None:
        self.pages = pages
        self.prefill_chunk = prefill_chunk
        self.max_batch = max_batch
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def schedule(self) -> list[Chunk]:
        """Admit who fits, and give each running sequence its tokens and the pages for them."""
        while (
            self.waiting
            and len(self.running) < self.max_batch
            and self.pages.admit(self.waiting[0].id, self.waiting[0].positions)
        ):
            self.running.append(self.waiting.popleft())
        batch = []
        budget = self.prefill_chunk
        for sequence in self.running:
            count = 1
            if sequence.pending > 1:
                count = min(sequence.pending, budget)
                budget -= count
            if count:
                batch.append(Chunk(sequence, count))
                self.pages.extend(sequence.id, sequence.computed, sequence.computed + count)
        return batch

    def update(self, batch: Iterable[Chunk], samples: Iterable[Sample]) -> list[TokenOutput]:
        """Book a step that has run: one sample, in order, for each chunk that samples."""
        outputs = []
        remaining = iter(samples)
        for chunk in batch:
            sequence = chunk.sequence
            sampled = next(remaining) if chunk.samples else None
            sequence.computed = chunk.end
            if sampled is None:
                continue
            reason = sequence.append(sampled.token)
            if reason:
                self.running.remove(sequence)
                self.pages.release(sequence.id)
            outputs.append(
                TokenOutput(
                    sequence.id, sampled.token, sampled.logprob, sampled.top_logprobs, reason
                )
            )
        return outputs

    def remove(self, sequence_id: int) -> None:
        """Forget a sequence, waiting or running; nothing happens if there is none of this id."""
        for sequence in self.running:
            if sequence.id == sequence_id:
                self.running.remove(sequence)
                self.pages.release(sequence_id)
                return
        for sequence in self.waiting:
            if sequence.id == sequence_id:
                self.waiting.remove(sequence)
                return
