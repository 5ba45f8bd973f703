"""A decoder whose next token depends on every token of the history that it finds in its pages.

It stores each token's id and position in the pages as keys and values, and reads them back through
the page tables: a page lost, freed too early, wrongly shared or not filled shows as a failed
assertion or as a wrong token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, reduce
from itertools import accumulate

import torch
from torch import Tensor

from ossia.config import (
    GELU,
    AttentionConfig,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
)
from ossia.model.context import Context
from ossia.ops import REFERENCE, Backend, Recorded, Recorder
from ossia.ops.paged import LayerKind, LayerKV, PagedKV, StepTables

VOCAB = 97


def config(windows: tuple[int | None, ...], context_length: int = 200) -> ModelConfig:
    attention = AttentionConfig(num_heads=1, num_kv_heads=1, head_dim=1)
    layers = tuple(
        LayerConfig(replace(attention, window=window), MLPConfig(1, GELU())) for window in windows
    )
    return ModelConfig(VOCAB, 1, context_length, layers, LearnedPositions(), LayerNorm())


PRIME = 10007


def advance(state: int, token: int) -> int:
    return (state * 31 + token + 1) % PRIME


def next_tokens(history: Tensor) -> Tensor:
    """The token after each one: the states of `advance`, all at once.

    After n tokens the state is 31^n * (7 + the sum of (token + 1) / 31^i, i = 1 .. n) mod PRIME.
    """
    up, down = powers(31, len(history)), powers(pow(31, -1, PRIME), len(history))
    sums = ((history + 1) * down % PRIME).cumsum(0)
    return up * ((7 + sums) % PRIME) % PRIME % VOCAB


def powers(base: int, count: int) -> Tensor:
    """base^1 .. base^count mod PRIME."""
    return _powers(base, 1 << count.bit_length())[:count]


@cache
def _powers(base: int, count: int) -> Tensor:
    return torch.tensor(list(accumulate([base] * count, lambda x, y: x * y % PRIME)))


def continuation(prompt: list[int], count: int) -> list[int]:
    """What a greedy run must give."""
    tokens = []
    state = reduce(advance, prompt, 7)
    for _ in range(count):
        tokens.append(state % VOCAB)
        state = advance(state, tokens[-1])
    return tokens


class Again(Recorder):
    """Replays a step by running it again, on what its inputs hold by then."""

    def __init__(self, buckets: tuple[int, ...]) -> None:
        self.buckets = buckets

    def record(self, step: Callable[[], Tensor]) -> Recorded:
        result = step()

        def replay() -> None:
            result.copy_(step())

        return Recorded(result, replay)


class Replaying(Backend):
    def __init__(self, buckets: tuple[int, ...]) -> None:
        self.buckets = buckets

    def recorder(self) -> Recorder:
        return Again(self.buckets)


class FakeDecoder:
    """Stands in for ossia.model.Decoder. The first layer must see the whole text.

    buckets: batch sizes for which decode steps are recorded; by default none is.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    fetches_experts = False

    def __init__(
        self,
        windows: tuple[int | None, ...] = (None, 5),
        context_length: int = 200,
        buckets: tuple[int, ...] = (),
    ) -> None:
        self.ops = Replaying(buckets) if buckets else REFERENCE
        self.config = config(windows, context_length)
        self.layer_kinds = tuple(LayerKind(window, 1, 1) for window in windows)
        self.broken_token: int | None = None  # the model's logits after this one are NaN
        self.error: BaseException | None = None  # what the next call raises
        self.fatal_token: int | None = None  # a call that reads it raises
        self.steps: list[list[int]] = []  # query lengths of each call

    def context(self, tokens: Tensor, positions: Tensor, where: PagedKV) -> Context:
        return Context(positions, {}, where)

    def hidden_states(self, tokens: Tensor, context: Context) -> Tensor:
        positions, kv = context.positions, context.where
        assert isinstance(kv, PagedKV)
        rows = len(kv.lengths)
        tokens, positions, kv = _without_padding(tokens, positions, kv)
        self.steps.append(kv.query_lengths.tolist())
        assert tokens.dtype == positions.dtype == torch.int64
        if self.error is not None:
            raise self.error
        if self.fatal_token in tokens.tolist():
            raise ZeroDivisionError("a bug that one request meets")
        for index in range(len(self.layer_kinds)):
            self._write(kv.layer(index), tokens, positions)
        histories = [self._read(kv.layer(0), s, 0, int(n)) for s, n in enumerate(kv.lengths)]
        for index in range(1, len(self.layer_kinds)):
            layer = kv.layer(index)
            for s, (first, end) in enumerate(_visible(layer)):
                seen = self._read(layer, s, first, end)
                assert torch.equal(seen, histories[s][first:]), "a window shows another text"
        pairs = zip(histories, self.steps[-1], strict=True)
        following = torch.cat([next_tokens(history)[-count:] for history, count in pairs])
        if self.broken_token is not None:
            following[tokens == self.broken_token] = -1
        padding = rows - len(kv.lengths)
        return torch.cat([following, following.new_zeros(padding)])[:, None].float()

    def unembed(self, hidden: Tensor) -> Tensor:
        logits = -(torch.arange(VOCAB) - hidden).abs() / 10
        return torch.where(hidden < 0, torch.nan, logits)

    def parameters(self) -> Iterator[Tensor]:
        return iter(())

    buffers = parameters

    def _write(self, layer: LayerKV, tokens: Tensor, positions: Tensor) -> None:
        tables = layer.tables
        rows = torch.repeat_interleave(torch.arange(len(tables.lengths)), tables.query_lengths)
        pages = tables.page_table[rows, positions // tables.page_size]
        assert (pages > 0).all(), "no page for a new token"
        for s, (first, end) in enumerate(_visible(layer)):
            columns = slice(first // tables.page_size, -(-end // tables.page_size))
            others = torch.tensor([not _one_text(tables, s, r) for r in range(len(tables.lengths))])
            assert not tables.lengths[~others].eq(end).sum() > 1, "two texts share all pages"
            seen = torch.isin(pages[others[rows]], tables.page_table[s, columns])
            assert not seen.any(), "a shared page is written"
        layer.keys[pages, positions % tables.page_size, 0, 0] = tokens.float()
        layer.values[pages, positions % tables.page_size, 0, 0] = positions.float()

    def _read(self, layer: LayerKV, sequence: int, first: int, end: int) -> Tensor:
        positions = torch.arange(first, end)
        page_size = layer.tables.page_size
        pages = layer.tables.page_table[sequence, positions // page_size]
        assert (pages > 0).all(), "a visible position has no page"
        offsets = positions % page_size
        stored = layer.values[pages, offsets, 0, 0]
        assert torch.equal(stored, positions.float()), "a visible position was overwritten"
        return layer.keys[pages, offsets, 0, 0].long()


def _without_padding(
    tokens: Tensor, positions: Tensor, kv: PagedKV
) -> tuple[Tensor, Tensor, PagedKV]:
    """The step without the rows at its end that write to page 0."""
    scratch = torch.stack([table[:, 0] == 0 for table in kv.page_tables.values()])
    scratch = scratch.all(0) & (kv.lengths == 1)
    count = int((~scratch).sum())
    assert not scratch[:count].any(), "a padded row stands before others"
    if count == len(scratch):
        return tokens, positions, kv
    assert len(tokens) == len(scratch)
    assert tokens[count:].eq(0).all()
    assert positions[count:].eq(0).all()
    tables = {kind: table[:count] for kind, table in kv.page_tables.items()}
    kv = PagedKV(kv.pool, tables, kv.lengths[:count], kv.query_lengths[:count])
    return tokens[:count], positions[:count], kv


def _one_text(tables: StepTables, one: int, other: int) -> bool:
    """Whether two rows are of one text: its last token and those drafted after it. Where the
    shorter ends is a page that is written, and so no other text's.
    """
    last = int(tables.lengths[[one, other]].min()) - 1
    column = tables.page_table[:, last // tables.page_size]
    return bool(column[one] == column[other])


def _visible(layer: LayerKV) -> list[tuple[int, int]]:
    """For each sequence the positions, first and end, that some query of the step sees."""
    tables = layer.tables
    pairs = zip(tables.lengths.tolist(), tables.query_lengths.tolist(), strict=True)
    window = tables.window
    return [
        (0 if window is None else max(0, length - count - window + 1), length)
        for length, count in pairs
    ]
