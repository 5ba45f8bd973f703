"""One forward pass over a step's chunks: tokens, positions and page tables in, logits out, and the
log-probabilities of prompts' tokens.

A step in which each span is one token has its inputs in memory that stays where it is, so
that a backend can record the whole step once and replay it after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ossia.engine.kv import KVCache, PagedText
from ossia.engine.logprobs import score
from ossia.engine.ranks import Leader, Pass
from ossia.engine.request import TokenLogprob
from ossia.engine.scheduler import Chunk
from ossia.engine.staging import send, sent
from ossia.ops import Recorded
from ossia.ops.paged import PagedKV, PagePool

if TYPE_CHECKING:
    from ossia.model import Decoder


class Computed(NamedTuple):
    """What a step computed. logits: float32 (positions wanted, vocab), in order, valid until the
    next step. scores: for each chunk those of its `scored` tokens.
    """

    logits: Tensor
    scores: list[list[TokenLogprob]]


class Span(NamedTuple):
    """Tokens of one text that are read as one query of attention, the first at position `start`."""

    text: PagedText
    start: int
    tokens: tuple[int, ...]


def _spans(step: Sequence[Chunk]) -> list[Span]:
    """The chunks; each token of a chunk whose positions are all wanted (a text's last token, and
    those drafted after it) is on its own, computed as in a step of its own: a backend writes all
    keys before it reads any.
    """
    spans: list[Span] = []
    for chunk in step:
        text, start, tokens = chunk.sequence.text, chunk.start, chunk.tokens
        if chunk.wanted == len(tokens):
            spans += [Span(text, start + i, (token,)) for i, token in enumerate(tokens)]
        else:
            spans.append(Span(text, start, tokens))
    return spans


class Runner:
    """A decoder, and the pool that its keys and values go to.

    While it is in use the decoder's weights must stay where they are; a step sees those that were
    changed in place.
    """

    def __init__(
        self, decoder: Decoder, pool: PagePool, kv: KVCache, leader: Leader | None = None
    ) -> None:
        """leader: of the processes among which the decoder is divided."""
        self.decoder = decoder
        self.pool = pool
        self.kv = kv
        self.device = decoder.device
        self._leader = leader
        if leader is not None:
            leader.open(pool)
        # What a step fetches differs from step to step.
        self._recorder = None if decoder.fetches_experts else decoder.ops.recorder()
        # By the number of rows, and whether each is of another text.
        self._decode_steps: dict[tuple[int, bool], DecodeStep] = {}

    def run(self, step: Sequence[Chunk], tokens: Tensor | None = None) -> Computed:
        """Read the chunks' tokens.

        tokens: int64 (chunks,), one of each, if only the device knows them; of a step that `knows`.
        """
        if all(chunk.wanted == len(chunk.tokens) and not chunk.scored for chunk in step):
            spans = _spans(step)
            if (rows := self._bucket(len(spans))) is not None:
                return self._decode(step, spans, rows, tokens)
        return self._read(step)

    def knows(self, count: int) -> bool:
        """Whether a step of one token of each of so many texts has been recorded."""
        rows = self._bucket(count)
        decode = None if rows is None else self._decode_steps.get((rows, True))
        return decode is not None and decode.recorded is not None

    def _bucket(self, count: int) -> int | None:
        """The rows of the recorded step that has room for so many; None if there can be none."""
        buckets = () if self._recorder is None else self._recorder.buckets
        return next((rows for rows in buckets if rows >= count), None)

    def _read(self, step: Sequence[Chunk]) -> Computed:
        """Any step, operation by operation."""
        queries = _spans(step)
        spans = [(query.start + len(query.tokens), len(query.tokens)) for query in queries]
        inputs = Pass(
            [token for chunk in step for token in chunk.tokens],
            [position for chunk in step for position in range(chunk.start, chunk.end)],
            self.kv.tables([query.text for query in queries], max(spans)[0]),
            spans,
        )
        if self._leader is None:
            hidden = inputs.hidden_states(self.decoder, self.pool)
        else:
            hidden = self._leader.hidden_states(inputs, self.decoder, self.pool)
        # Unembedding is expensive: only the positions whose logits are wanted.
        rows, end = [], 0
        scores: list[list[TokenLogprob]] = []
        for chunk in step:
            scores.append(self._score(chunk, hidden[end : end + len(chunk.tokens)]))
            end += len(chunk.tokens)
            rows += range(end - chunk.wanted, end)
        if len(rows) < end:
            hidden = hidden[torch.tensor(rows, dtype=torch.int64).to(self.device)]
        return Computed(self.decoder.unembed(hidden), scores)

    def _score(self, chunk: Chunk, hidden: Tensor) -> list[TokenLogprob]:
        """Scores by the chunk's hidden states (tokens, hidden)."""
        if not chunk.scored:
            return []
        scores = chunk.sequence.scores
        assert scores is not None
        hidden = hidden[chunk.scored_from - chunk.start :][: len(chunk.scored)]
        return score(self.decoder, hidden, chunk.scored, scores.alternatives)

    def _decode(
        self, step: Sequence[Chunk], spans: Sequence[Span], rows: int, tokens: Tensor | None
    ) -> Computed:
        """A step whose spans are of one token each, recorded for `rows` of them."""
        assert self._recorder is not None
        form = rows, len(spans) == len(step)
        decode = self._decode_steps.get(form)
        if decode is None:
            decode = DecodeStep(self.decoder, self.pool, self.kv, *form)
            self._decode_steps[form] = decode
        decode.fill(spans, tokens)
        if decode.recorded is not None:
            decode.recorded.replay()
        else:
            decode.recorded = self._recorder.record(decode.compute)
            if decode.recorded is None:  # this backend cannot record any other step either
                self._recorder = None
                self._decode_steps.clear()
                return self._read(step)
        return Computed(decode.recorded.result[: len(spans)], [[] for _ in step])


class DecodeStep:
    """The inputs of a step of up to `rows` spans of one token each, in memory that stays where it
    is. Rows that no span has read a token 0 at position 0 and write its keys and
    values to page 0, which belongs to no text. apart: each span is of another text.
    """

    def __init__(
        self, decoder: Decoder, pool: PagePool, kv: KVCache, rows: int, apart: bool
    ) -> None:
        self.recorded: Recorded | None = None
        self._decoder, self._kv = decoder, kv
        device = decoder.device
        # Tokens, positions, lengths and query lengths.
        self._numbers = torch.zeros((4, rows), dtype=torch.int64, device=device)
        self._numbers[2:] = 1
        self._tables = {
            kind: torch.zeros((rows, kv.limits.columns), dtype=torch.int32, device=device)
            for kind in pool.kinds
        }
        # The text that each row of the tables was copied from, and its version.
        self._texts: list[PagedText | None] = [None] * rows
        self._versions = [0] * rows
        self._tokens, self._positions, lengths, counts = self._numbers
        self._where = PagedKV(pool, self._tables, lengths, counts, one_query=True, apart=apart)

    def fill(self, spans: Sequence[Span], tokens: Tensor | None = None) -> None:
        """Make these spans, of one token each, what `compute` reads; `tokens` on the device take
        the place of theirs. Does not wait for a step that the device computes.
        """
        padding = [0] * (len(self._texts) - len(spans))
        starts = [span.start for span in spans]
        numbers = (
            [span.tokens[0] for span in spans] + padding,
            starts + padding,
            [start + 1 for start in starts] + [1] * len(padding),
        )
        send(torch.tensor(numbers), self._numbers[:3])
        if tokens is not None:  # -1 is where none could be sampled: an error that is found later
            self._tokens[: len(tokens)].copy_(tokens.clamp(min=0))
        changed = {
            row: span.text
            for row, span in enumerate(spans)
            if self._versions[row] != span.text.version or self._texts[row] is not span.text
        }
        if changed:
            self._copy(changed)
        for row in range(len(spans), len(self._texts)):
            if self._texts[row] is not None:
                for table in self._tables.values():
                    table[row, :1].zero_()  # `= 0` would copy the number from the host
                self._texts[row] = None

    def compute(self) -> Tensor:
        """Float32 logits (rows, vocab)."""
        context = self._decoder.context(self._tokens, self._positions, self._where)
        return self._decoder.unembed(self._decoder.hidden_states(self._tokens, context))

    def _copy(self, texts: dict[int, PagedText]) -> None:
        """Bring rows of the tables up to date. Pages that a text has released may stay: no query
        sees them.
        """
        rows = sent([*texts], torch.int64, self._decoder.device)
        length = self._kv.page_size * max(text.columns for text in texts.values())
        for kind, pages in self._kv.tables([*texts.values()], length).items():
            table = self._tables[kind]
            table[:, : pages.shape[1]].index_copy_(0, rows, sent(pages, table.dtype, table.device))
        for row, text in texts.items():
            self._texts[row], self._versions[row] = text, text.version
