"""A model divided among processes: one leads, with the engine, and the others follow its passes.

The leader alone schedules, samples and talks. Before each pass it sends its inputs, and the
followers run the same pass over pages of the same numbers, so that the sums over all ranks meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ossia.ops.paged import LayerKind, PagedKV, PagePool

if TYPE_CHECKING:
    from ossia.model import Decoder


@dataclass(frozen=True)
class Pass:
    """One pass over packed tokens. tables: int32 (sequences, pages) on the CPU, for each kind of
    layer. spans: for each sequence its length after the pass, and how many of them are its tokens.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    tables: Mapping[LayerKind, Tensor]
    spans: Sequence[tuple[int, int]]

    def hidden_states(self, decoder: Decoder, pool: PagePool) -> Tensor:
        """(tokens, hidden), for `decoder.unembed`."""
        device = decoder.device

        def integers(*rows: Sequence[int]) -> Tensor:
            return torch.tensor(rows, dtype=torch.int64).to(device)

        where = PagedKV(
            pool,
            {kind: table.to(device) for kind, table in self.tables.items()},
            *integers(*zip(*self.spans, strict=True)),
            spans=self.spans,
        )
        tokens, positions = integers(self.tokens, self.positions)
        return decoder.hidden_states(tokens, decoder.context(tokens, positions, where))


class Leader:
    """The first process of a group, for its engine. sharing: how many ranks share this machine's
    memory for keys and values.
    """

    def __init__(self, sharing: int = 1) -> None:
        self.sharing = sharing
        self._failed = False

    def open(self, pool: PagePool) -> None:
        """Let the followers make pools like this one."""
        dtype = pool.keys[pool.kinds[0]].dtype
        _broadcast((list(pool.num_pages.values()), pool.page_size, dtype))

    def hidden_states(self, step: Pass, decoder: Decoder, pool: PagePool) -> Tensor:
        """Those of a pass that all ranks run. After one that failed somewhere the ranks are not at
        the same place, so there is none after it.
        """
        if self._failed:
            raise RuntimeError(
                "a process of this model failed, so it computes no more: start ossia again"
            )
        try:
            _broadcast(step)
            return step.hidden_states(decoder, pool)
        except BaseException:
            self._failed = True
            raise


@torch.inference_mode()
def follow(decoder: Decoder) -> None:
    """Run the leader's passes until this process is ended."""
    num_pages, page_size, dtype = _broadcast(None)
    kinds = dict.fromkeys(decoder.layer_kinds)
    pool = PagePool(
        decoder.layer_kinds,
        dict(zip(kinds, num_pages, strict=True)),
        page_size=page_size,
        dtype=dtype,
        device=decoder.device,
    )
    while True:
        step: Pass = _broadcast(None)
        step.hidden_states(decoder, pool)


def _broadcast(value: Any) -> Any:
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]
