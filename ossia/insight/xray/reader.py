"""Reads one text chunk by chunk, over pages of its own: what an engine does for one sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.model import Decoder
from ossia.ops.paged import LayerKind, PagedKV, PagePool

_PAGE = 16
CHUNK = 512  # tokens of a pass: enough that experts are read once for many of them


class Reader:
    """The keys and values of one text of up to `capacity` tokens, and how far it has been read.

    Pages of sliding layers are used again once no later token sees them.
    """

    def __init__(
        self, decoder: Decoder, capacity: int, *, kv: torch.dtype | None = None, chunk: int = CHUNK
    ) -> None:
        """kv: the dtype of keys and values; the model's own if None. chunk: the most tokens of a
        `read`.
        """
        self.decoder, self.length, self.chunk = decoder, 0, chunk
        columns = -(-capacity // _PAGE)
        kinds = dict.fromkeys(decoder.layer_kinds)
        pages = {kind: min(columns, _needed(kind, columns, chunk)) for kind in kinds}
        device = decoder.device
        self._pool = PagePool(
            decoder.layer_kinds,
            pages,
            page_size=_PAGE,
            dtype=kv or decoder.dtype,
            device=device,
        )
        every = torch.arange(columns, dtype=torch.int32, device=device)
        self._tables = {kind: (every % count)[None] for kind, count in pages.items()}

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """Read the text's next tokens, int64 (count,): their normalised hidden states (count,
        hidden), for `Decoder.unembed`.
        """
        count = len(tokens)
        assert count <= self.chunk
        end = self.length + count
        device = self.decoder.device
        where = PagedKV(
            self._pool,
            self._tables,
            torch.tensor([end], device=device),
            torch.tensor([count], device=device),
            spans=[(end, count)],
        )
        positions = torch.arange(self.length, end, device=device)
        context = self.decoder.context(tokens, positions, where)
        self.length = end
        return self.decoder.hidden_states(tokens, context)


def hidden_states(decoder: Decoder, tokens: Tensor, *, kv: torch.dtype | None = None) -> Tensor:
    """Those of a whole text, int64 (length,), as `Reader.read` returns them."""
    reader = Reader(decoder, len(tokens), kv=kv)
    return torch.cat([reader.read(part) for part in tokens.split(reader.chunk)])


def _needed(kind: LayerKind, columns: int, chunk: int) -> int:
    """Pages that hold what a chunk sees and writes."""
    return columns if kind.window is None else (kind.window - 1 + chunk) // _PAGE + 2
