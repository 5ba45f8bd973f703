"""Drafts by a smaller model of the same vocabulary, over pages of its own; and which drafts an
engine's options ask for.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from ossia.engine.capacity import plan_pages
from ossia.engine.draft import Lookahead, Repetition, Speculation
from ossia.engine.kv import CacheLimits, KVCache, PagedText
from ossia.engine.runner import Runner
from ossia.engine.sampler import Sampler
from ossia.engine.scheduler import Chunk, Sequence
from ossia.errors import OssiaError
from ossia.ops.paged import PagePool
from ossia.options import EngineOptions

if TYPE_CHECKING:
    from ossia.model import Decoder

# The most positions of a step with drafts. On a CPU up to 16 are computed by kernels that are bound
# by memory and give each the same bits as alone (docs/cpu.md).
_CPU_ROWS, _GPU_ROWS = 16, 128

# Tokens to catch up with one by one, which is a recorded step, rather than as a part of a prompt.
_FEW = 4


@dataclass(eq=False)
class DraftText:
    """A sequence as the draft model reads it: the same tokens, over pages of its own. The first
    `sequence.computed` have keys and values, and after them the tokens `ahead`, which were drafted.
    """

    sequence: Sequence
    ahead: list[int] = field(default_factory=list)

    @property
    def text(self) -> PagedText:
        return self.sequence.text

    @property
    def end(self) -> int:
        """The positions that have keys and values."""
        return self.sequence.computed + len(self.ahead)

    def verify(self) -> None:
        """Count what was drafted and has become text as read, and forget the rest."""
        tokens, sequence = self.text.tokens, self.sequence
        for token in self.ahead:
            if sequence.pending < 2 or tokens[sequence.computed] != token:
                break
            sequence.computed += 1
        self.ahead.clear()


class ModelDrafter:
    """Samples drafts from the draft model's logits as the text itself is sampled: by the same
    parameters and the same random number, so that at any temperature the likelier of both models'
    tokens agree. It reads prompts in chunks, beside the steps of the model.
    """

    def __init__(
        self, decoder: Decoder, limits: CacheLimits, budget: int, *, prefix_cache: bool
    ) -> None:
        dtype, device = decoder.dtype, decoder.device
        num_pages = plan_pages(decoder.layer_kinds, budget, limits, dtype)
        pool = PagePool(
            decoder.layer_kinds, num_pages, page_size=limits.page_size, dtype=dtype, device=device
        )
        self.kv_bytes = pool.nbytes
        self._kv = KVCache(num_pages, limits, prefix_cache=prefix_cache)
        self._runner = Runner(decoder, pool, self._kv)
        self._sampler = Sampler(decoder.ops)
        self._limits = limits
        self._texts: dict[int, DraftText] = {}  # by the sequences' ids

    def keep(self, running: SequenceOf[Sequence]) -> None:
        """As Drafter.keep."""
        for id in self._texts.keys() - {sequence.id for sequence in running}:
            self._kv.close(self._texts.pop(id).text)

    @torch.inference_mode()
    def draft(self, ahead: SequenceOf[Lookahead]) -> None:
        """As Drafter.draft; to those whose text it has read."""
        work = self._catch_up(ahead)
        while work:
            logits = self._runner.run([chunk for _, chunk in work]).logits
            ends = accumulate(chunk.wanted for _, chunk in work)
            last = [end - 1 for (_, chunk), end in zip(work, ends, strict=True) if chunk.wanted]
            looks = [look for look, chunk in work if chunk.wanted]
            for look, chunk in work:
                self._note(look, chunk)
            ids = self._sampler.ids(logits[last], [look.states[-1] for look in looks])
            work = []
            for look, token in zip(looks, ids, strict=True):
                if token >= 0 and look.push(token):
                    work += self._chunk(look, (token,))

    def _catch_up(self, ahead: SequenceOf[Lookahead]) -> list[tuple[Lookahead, Chunk]]:
        """The tokens of each text that have not been read, as many as a step reads."""
        work, budget = [], self._limits.chunk
        for look in ahead:
            if (mine := self._open(look.sequence)) is not None and budget > 0:
                tokens = tuple(mine.text.tokens[mine.sequence.computed :][:budget])
                budget -= len(tokens)
                work += self._chunk(look, tokens)
        return work

    def _open(self, sequence: Sequence) -> DraftText | None:
        """A sequence's text, verified; None for one that is too long for the draft model."""
        if len(sequence.text.tokens) >= self._limits.context_length:
            return None
        mine = self._texts.get(sequence.id)
        if mine is None:
            text = PagedText(sequence.text.tokens, sequence.text.prompt)
            reused = self._kv.match(text)
            self._kv.open(text, reused)
            mine = DraftText(replace(sequence, text=text, scores=None, computed=reused))
            self._texts[sequence.id] = mine
        mine.verify()
        self._kv.shrink(mine.text, mine.sequence.computed)
        self._kv.commit(mine.text, mine.sequence.computed)
        return mine

    def _chunk(self, look: Lookahead, tokens: tuple[int, ...]) -> list[tuple[Lookahead, Chunk]]:
        """What to read next of a text; nothing if there is no page for it."""
        mine = self._texts[look.sequence.id]
        end = mine.end + len(tokens)
        if end > self._limits.context_length or not self._kv.grow(mine.text, end):
            return []
        is_last = end >= len(mine.text.tokens)
        wanted = 0 if not is_last else len(tokens) if len(tokens) <= _FEW else 1
        return [(look, Chunk(mine.sequence, mine.end, tokens, wanted))]

    def _note(self, look: Lookahead, chunk: Chunk) -> None:
        """Remember that a chunk has been read."""
        mine = self._texts[look.sequence.id]
        if look.tokens:
            mine.ahead += chunk.tokens
        else:
            mine.sequence.computed += len(chunk.tokens)
            self._kv.commit(mine.text, mine.sequence.computed)


def speculation(
    decoder: Decoder,
    draft: Decoder | None,
    options: EngineOptions,
    limits: CacheLimits,
    budget: int,
) -> Speculation | None:
    """What drafts tokens; None if nothing is to. Raises OssiaError for what cannot."""
    vocab_size, context_length = decoder.config.vocab_size, limits.context_length
    if draft is not None:
        if draft.config.vocab_size != vocab_size:
            raise OssiaError(
                f"the draft model's vocabulary has {draft.config.vocab_size} ids, and the model's "
                f"{vocab_size}: they must be the same"
            )
        limits = replace(limits, context_length=min(context_length, draft.config.context_length))
        drafter = ModelDrafter(draft, limits, budget, prefix_cache=options.prefix_cache)
    elif options.speculate is None:
        return None
    elif options.speculate == "ngram":
        drafter = Repetition()
    else:
        raise OssiaError(
            f"an engine takes the draft model itself, not its name {options.speculate}"
        )
    rows = _GPU_ROWS if decoder.device.type == "cuda" else _CPU_ROWS
    return Speculation(drafter, most=options.speculate_tokens, rows=rows, vocab_size=vocab_size)
