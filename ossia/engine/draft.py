"""Speculation: tokens are drafted cheaply, and one pass of the model verifies several at once.

Every position is sampled from the model's own logits, with the penalties, the constraint and the
random number that it would have had in a step of its own. A drafted token counts only if it is the
one that was sampled, so that no token depends on the drafts (https://arxiv.org/abs/2211.17192 has
the idea; with the random numbers fixed in advance, its test for acceptance becomes equality).
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Protocol

from ossia.engine.kv import KVCache
from ossia.engine.scheduler import Chunk, Sequence

_log = logging.getLogger(__name__)

# Rests after drafts of which nothing was accepted, in steps; they double up to this.
_LONGEST_REST = 32
_LONGEST_MATCH, _SHORTEST_MATCH = 5, 2


class Lookahead:
    """The tokens drafted for a sequence, at most `most`, and the states from which each position is
    sampled: the sequence's own, then one after each token.
    """

    def __init__(self, sequence: Sequence, most: int, vocab_size: int) -> None:
        self.sequence, self.most = sequence, most
        self.tokens: list[int] = []
        self.states = [sequence.sampler]
        self._vocab_size = vocab_size

    def push(self, token: int) -> bool:
        """Draft one more token; False if there is to be no further one, because `most` are there,
        the constraint does not allow it, or the text ends with it.
        """
        state = self.states[-1].after(token, self._vocab_size)
        if state is None or token in self.sequence.stop_ids:
            return False
        self.tokens.append(token)
        self.states.append(state)
        return len(self.tokens) < self.most


class Drafter(Protocol):
    """Where drafts come from. kv_bytes: the memory of its keys and values."""

    kv_bytes: int

    def draft(self, ahead: SequenceOf[Lookahead]) -> None:
        """Push tokens to each of these, which are in the batch."""
        ...

    def keep(self, running: SequenceOf[Sequence]) -> None:
        """Forget all other sequences."""
        ...


class Pace:
    """How many tokens to draft for one sequence: more while all are accepted, fewer and less often
    while none is.
    """

    def __init__(self, most: int) -> None:
        self._most = self._length = most
        self._misses = self._rest = 0

    def next(self) -> int:
        """The most tokens to draft in this step."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._length

    def note(self, drafted: int, accepted: int) -> None:
        """Learn what became of a draft."""
        if accepted:
            self._misses = 0
            self._length = min(
                self._most, 2 * self._length if accepted == drafted else accepted + 1
            )
            return
        self._misses += 1
        self._length = max(1, self._length // 2)
        if self._misses > 1:
            self._rest = min(2**self._misses, _LONGEST_REST)


class Speculation:
    """Adds drafts to steps in which every sequence decodes.

    most: tokens to draft for a sequence in a step. rows: the most positions of a step with drafts,
    up to which a pass costs little more than for one and, with native kernels, has the same bits.
    """

    def __init__(self, drafter: Drafter, *, most: int, rows: int, vocab_size: int) -> None:
        self.drafted = self.accepted = 0
        self.kv_bytes = drafter.kv_bytes
        self._drafter: Drafter | None = drafter
        self._most, self._rows, self._vocab_size = most, rows, vocab_size
        self._paces: dict[int, Pace] = {}  # by the sequences' ids

    def extend(self, step: list[Chunk], kv: KVCache) -> list[Chunk]:
        """The step with drafts, as far as there are pages for them."""
        if self._drafter is None or not all(_decodes(chunk) for chunk in step):
            return step
        running = [chunk.sequence for chunk in step]
        self._paces = {s.id: self._paces.get(s.id) or Pace(self._most) for s in running}
        ahead, spare = [], self._rows - len(step)
        for left, sequence in zip(range(len(running), 0, -1), running, strict=True):
            room = sequence.max_length - len(sequence.text.tokens) - 1
            most = min(self._paces[sequence.id].next(), room, -(-spare // left))
            if most > 0:
                spare -= most
                ahead.append(Lookahead(sequence, most, self._vocab_size))
        try:
            self._drafter.keep(running)
            if ahead:
                self._drafter.draft(ahead)
        except Exception as error:  # without drafts everything works as well
            _log.warning("nothing is drafted any more: %s: %s", type(error).__name__, error)
            self._drafter = None
            return step
        by_id = {look.sequence.id: look for look in ahead if look.tokens}
        return [_with_draft(chunk, by_id.get(chunk.sequence.id), kv) for chunk in step]

    def note(self, chunk: Chunk, accepted: int) -> None:
        """Learn how many of a chunk's drafted tokens were accepted."""
        drafted = chunk.wanted - 1
        self.drafted += drafted
        self.accepted += accepted
        if chunk.sequence.id in self._paces:
            self._paces[chunk.sequence.id].note(drafted, accepted)


def _decodes(chunk: Chunk) -> bool:
    return chunk.wanted == 1 and len(chunk.tokens) == 1 and not chunk.scored


def _with_draft(chunk: Chunk, look: Lookahead | None, kv: KVCache) -> Chunk:
    """The chunk and what was drafted for it, as far as there are pages: a draft takes none from
    other texts.
    """
    if look is None:
        return chunk
    text, count = chunk.sequence.text, len(look.tokens)
    if not kv.grow(text, chunk.end + count):
        count = min(count, text.columns * kv.page_size - chunk.end)
    return replace(
        chunk,
        tokens=(*chunk.tokens, *look.tokens[:count]),
        wanted=1 + count,
        samplers=tuple(look.states[: 1 + count]),
    )


class Repetition:
    """Drafts what followed the last tokens where they stood before (prompt look-up,
    https://github.com/apoorvumang/prompt-lookup-decoding).
    """

    kv_bytes = 0

    def __init__(self) -> None:
        self._texts: dict[int, bytearray] = {}  # ids of 4 bytes, by the sequences' ids

    def keep(self, running: SequenceOf[Sequence]) -> None:
        self._texts = {s.id: self._texts.get(s.id, bytearray()) for s in running}

    def draft(self, ahead: SequenceOf[Lookahead]) -> None:
        for look in ahead:
            tokens, data = look.sequence.text.tokens, self._texts[look.sequence.id]
            data += array("I", tokens[len(data) // 4 :]).tobytes()
            begin = _continuation(data)
            # A repetition that reaches the end of the text goes on by what is drafted itself.
            source = tokens[begin:] if begin is not None else []
            place = 0
            while place < len(source) and look.push(source[place]):
                source.append(source[place])
                place += 1


def _continuation(data: bytearray) -> int | None:
    """The place after the latest earlier occurrence of the longest end of a text of 4-byte ids."""
    length = len(data)
    for size in range(4 * _LONGEST_MATCH, 4 * _SHORTEST_MATCH - 1, -4):
        pattern, end = data[-size:], length - 1
        while len(pattern) == size and (found := data.rfind(pattern, 0, end)) >= 0:
            if found % 4 == 0:
                return (found + size) // 4
            end = found + size - 1
    return None
