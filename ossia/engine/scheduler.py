"""Who runs in the next step: requests are admitted first come, first served, those that decode get
a token in every step, and the prompts being read share what a step may read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Protocol

from ossia.engine.kv import KVCache, PagedText
from ossia.engine.logprobs import PromptScores
from ossia.engine.request import FinishReason, PromptOutput, TokenLogprob, TokenOutput
from ossia.engine.sampler import Sample
from ossia.engine.sampler_state import SamplerState


@dataclass(eq=False)
class Sequence:
    """A request at work: its text, of which the first `computed` tokens have keys and values."""

    id: int
    text: PagedText
    max_length: int  # prompt and output together
    stop_ids: frozenset[int]
    sampler: SamplerState
    scores: PromptScores | None = None  # of the prompt's tokens, if they are asked for
    computed: int = 0
    preemptions: int = 0
    cached: int = 0  # tokens of the prompt that the prefix cache had
    reported: bool = False  # whether its PromptOutput was made

    @property
    def generates(self) -> bool:
        """Whether tokens are to follow the prompt."""
        return self.max_length > self.text.prompt

    @property
    def running(self) -> bool:
        """Whether it holds pages, as from its admission until it ends or is preempted."""
        return self.text.row >= 0

    @property
    def pending(self) -> int:
        """Tokens not yet read: 1 while decoding, more while the prompt is read."""
        return len(self.text.tokens) - self.computed

    def append(self, token: int) -> FinishReason | None:
        """Add a sampled token; the reason if it is the last."""
        tokens = self.text.tokens
        tokens.append(token)
        if token in self.stop_ids:
            return "stop"
        return "length" if len(tokens) >= self.max_length else None

    def prompt_output(self, read: int) -> PromptOutput | None:
        """What there is to say of the prompt, once, if anything, when `read` tokens include it."""
        if self.reported or read < self.text.prompt:
            return None
        self.reported = True
        if self.scores is None and self.generates:
            return None
        scores = tuple(self.scores.found) if self.scores is not None else ()
        return PromptOutput(self.id, scores, None if self.generates else "length", self.cached)


@dataclass(frozen=True)
class Chunk:
    """A sequence's share of a step: the tokens to read, of which the first is at position `start`.

    wanted: how many of the last tokens need logits: 0 before the end of a prompt, 1 at the end of
        a text, more where drafted tokens (speculative decoding) follow it.
    scored: tokens of the prompt whose log-probabilities are wanted: the first is predicted at
        position `scored_from`, those after it at the positions after it.
    samplers: the states from which the wanted positions are sampled.
    """

    sequence: Sequence
    start: int
    tokens: tuple[int, ...]
    wanted: int
    scored: tuple[int, ...] = ()
    scored_from: int = 0
    samplers: tuple[SamplerState, ...] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def known(self) -> Chunk:
        """The chunk with the tokens that its text has by now, if it was made without them."""
        if self.wanted > 1:  # drafted ones, which the text does not have
            return self
        return replace(self, tokens=tuple(self.sequence.text.tokens[self.start : self.end]))


class Speculation(Protocol):
    """What adds drafted tokens to a step; see `ossia.engine.draft`."""

    def extend(self, step: list[Chunk], kv: KVCache) -> list[Chunk]: ...
    def note(self, chunk: Chunk, accepted: int) -> None: ...


class Scheduler:
    """The waiting and the running, oldest first; a step reads at most `prefill_chunk` prompt tokens
    in all.

    When a running sequence needs a page and none is free or evictable, the youngest is preempted:
    it gives up its pages and moves to the front of the queue. Readmitted, it recomputes what is no
    longer cached. After a preemption, no sequence is admitted until one leaves.
    """

    def __init__(
        self,
        kv: KVCache,
        *,
        prefill_chunk: int,
        max_batch: int,
        speculation: Speculation | None = None,
    ) -> None:
        self.kv = kv
        self.speculation = speculation
        self.prefill_chunk = prefill_chunk
        self.max_batch = max_batch
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queries = 0  # tokens of admitted prompts
        self.prefix_hits = 0  # of them, those whose keys and values were cached
        self._full = False  # nobody can be admitted until somebody leaves

    def schedule(self) -> list[Chunk]:
        """Admit who fits, and give each running sequence its tokens and the pages for them."""
        if self.waiting:
            self._admit()
        shares = self._shares()
        step: list[Chunk] = []
        for sequence in self.running:  # preemption removes from its end, those not yet served
            count = shares.get(sequence.id, 1)
            start, end = sequence.computed, sequence.computed + count
            if count and self._grow(sequence, end):
                step.append(_chunk(sequence, start, end))
        return step if self.speculation is None else self.speculation.extend(step, self.kv)

    def ahead(self, step: SequenceOf[Chunk]) -> dict[int, Chunk]:
        """The step after one that may still run: by their number in that one, the chunks of the
        texts that go on after it, unless what it samples stops them. Their tokens are not known
        yet, and 0 here. Pages are granted.

        Empty where samples matter for what follows, where somebody may be admitted first, and where
        pages are short.
        """
        admits = self.waiting and not self._full and len(self.running) < self.max_batch
        live = {i: chunk for i, chunk in enumerate(step) if chunk.sequence.running}
        if (
            self.speculation is not None
            or admits
            or len(live) < len(self.running)
            or not all(chunk.wanted == 1 and chunk.sequence.sampler.plain for chunk in step)
        ):
            return {}
        following = {
            i: Chunk(chunk.sequence, chunk.end, (0,), 1, samplers=chunk.samplers)
            for i, chunk in live.items()
            if chunk.end + 1 < chunk.sequence.max_length
        }
        lengths = [(chunk.sequence.text, chunk.end) for chunk in following.values()]
        if not self.kv.fits(lengths) or not all(self.kv.grow(*length) for length in lengths):
            return {}
        return following

    def commit(
        self,
        step: SequenceOf[Chunk],
        sampled: SequenceOf[SequenceOf[Sample]],
        scores: SequenceOf[SequenceOf[TokenLogprob]],
    ) -> list[TokenOutput | PromptOutput]:
        """Record a step that has run. sampled: for each chunk a sample at each wanted position, of
        which the first continues its text, and each other one if what was drafted before it is what
        was sampled. scores: for each chunk those of its `scored` tokens.
        """
        outputs: list[TokenOutput | PromptOutput] = []
        for chunk, samples, scored in zip(step, sampled, scores, strict=True):
            assert len(samples) == chunk.wanted
            sequence, reason = chunk.sequence, None
            if sequence.scores is not None:
                sequence.scores.add(scored)
            if (output := sequence.prompt_output(chunk.end)) is not None:
                reason = output.finish_reason
                outputs.append(output)
            sequence.computed = chunk.end - chunk.wanted
            accepted = self._accepted(chunk, samples)
            for sample in accepted:
                sequence.computed += 1
                reason = sequence.append(sample.token)
                outputs.append(
                    TokenOutput(
                        sequence.id,
                        sample.token,
                        sample.logprob,
                        sample.top_logprobs,
                        reason,
                        sequence.cached,
                    )
                )
                if reason:
                    break
            self.kv.commit(sequence.text, sequence.computed)
            if len(accepted) < len(samples):  # a rejected token is as if it had not been read
                self.kv.shrink(sequence.text, sequence.computed)
            if reason:
                self._leave(sequence)
        return outputs

    def _accepted(self, chunk: Chunk, samples: SequenceOf[Sample]) -> SequenceOf[Sample]:
        """The samples that continue the chunk's text: of those after the first the ones before
        which each drafted token was the one sampled.
        """
        drafted, count = chunk.tokens[-chunk.wanted :][1:], min(1, len(samples))
        for token, before, sample in zip(drafted, samples, samples[1:], strict=False):
            if before.token != token or sample.token < 0:  # the latter is the next step's error
                break
            chunk.sequence.sampler.record(sample.token)
            count += 1
        if drafted and self.speculation is not None:
            self.speculation.note(chunk, count - 1)
        return samples[:count]

    def remove(self, sequence_id: int, *, forget: bool = False) -> None:
        """Forget a sequence, waiting or running; nothing happens if there is none of this id.

        forget: what it computed is in doubt, and must not stay in the cache.
        """
        for sequence in self.running:
            if sequence.id == sequence_id:
                self._leave(sequence, forget=forget)
                return
        for sequence in self.waiting:
            if sequence.id == sequence_id:
                self.waiting.remove(sequence)
                self._full = False
                return

    def _leave(self, sequence: Sequence, *, forget: bool = False) -> None:
        self.running.remove(sequence)
        self.kv.close(sequence.text, forget=forget)
        self._full = False

    def _admit(self) -> None:
        """Start those waiting, in order, whose whole text fits beside what the running need next:
        the rest of their prompts, and a page more of text. One whose next page is being read for
        another waits for that page.
        """
        while self.waiting and len(self.running) < self.max_batch and not self._full:
            sequence = self.waiting[0]
            text = sequence.text
            most = None if sequence.scores is None else sequence.scores.reusable
            reused = self.kv.match(text, most)
            if most is None and self._is_being_read(text, reused):
                return
            self.kv.open(text, reused)
            page = self.kv.page_size
            needs = [(other.text, len(other.text.tokens) + page) for other in self.running]
            if not self.kv.fits([*needs, (text, len(text.tokens))]):
                assert self.running, "a text that was accepted does not fit alone"
                self.kv.close(text)
                self._full = True
                return
            if not sequence.preemptions:
                self.prefix_queries += len(text.tokens)
                self.prefix_hits += reused
                sequence.cached = reused
            sequence.computed = reused
            self.running.append(self.waiting.popleft())

    def _is_being_read(self, text: PagedText, reused: int) -> bool:
        """Whether a running prompt, which is read no later than this one would be, will publish the
        page that the text needs after its first `reused` tokens. So requests that arrive together
        with the same long prompt read it once.
        """
        page = reused // self.kv.page_size
        if not self.kv.prefix_cache or page >= len(text.keys):
            return False
        latest = len(text.tokens) - reused + self.prefill_chunk
        return any(
            sequence.text.published <= page < len(sequence.text.keys)
            and sequence.text.keys[page] == text.keys[page]
            and 1 < sequence.pending <= latest
            for sequence in self.running
        )

    def _shares(self) -> dict[int, int]:
        """How many tokens each prompt being read gets, by sequence: all of them share a quarter of
        the budget, so that each advances; the rest goes to those with the fewest tokens left, so
        that a short prompt does not wait for a long one.
        """
        prompts = [sequence for sequence in self.running if sequence.pending > 1]
        budget = self.prefill_chunk
        shares: dict[int, int] = {}
        for sequence in prompts:
            least = max(1, self.prefill_chunk // (4 * len(prompts)))
            shares[sequence.id] = min(sequence.pending, least, budget)
            budget -= shares[sequence.id]
        for sequence in sorted(prompts, key=lambda sequence: sequence.pending):
            more = min(sequence.pending - shares[sequence.id], budget)
            shares[sequence.id] += more
            budget -= more
        return shares

    def _grow(self, sequence: Sequence, length: int) -> bool:
        """Grant the pages for a running sequence's first `length` positions, at the expense of the
        youngest; False if the youngest is the sequence itself.
        """
        while not self.kv.grow(sequence.text, length):
            youngest = self.running.pop()
            assert self.running, "a text that was accepted does not fit alone"
            self.kv.close(youngest.text)
            youngest.computed = 0
            youngest.preemptions += 1
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            self._full = True
            if youngest is sequence:
                return False
        return True


def _chunk(sequence: Sequence, start: int, end: int) -> Chunk:
    """The chunk of a sequence's tokens start .. end - 1."""
    tokens = tuple(sequence.text.tokens[start:end])
    wanted = int(end == len(sequence.text.tokens) and sequence.generates)
    samplers = (sequence.sampler,) * wanted
    if sequence.scores is None:
        return Chunk(sequence, start, tokens, wanted, samplers=samplers)
    first, scored = sequence.scores.targets(start, end)
    return Chunk(sequence, start, tokens, wanted, scored, first, samplers)
