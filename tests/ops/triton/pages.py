"""Sequences in pages that are full of other numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops.paged import FP8, LayerKind, LayerKV, PagedKV, PagePool, to_fp8
from tests.ops.triton.common import normal


def as_bytes(x: Tensor) -> Tensor:
    """FP8 as codes, which can be compared and chosen from."""
    return x.view(torch.uint8) if x.dtype is FP8 else x


class Pages:
    """A pool of one layer, its pages in disorder and full of numbers; sequences of `lengths`."""

    def __init__(
        self,
        kind: LayerKind,
        lengths: list[int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        page_size: int = 16,
    ) -> None:
        self.kind, self.lengths, self.device = kind, lengths, device
        columns = -(-max(lengths) // page_size)
        order = torch.randperm(len(lengths) * columns, generator=torch.Generator().manual_seed(6))
        self.table = order.view(len(lengths), columns).int().to(device)
        self.pool = PagePool(
            [kind], {kind: len(order)}, page_size=page_size, dtype=dtype, device=device
        )
        for seed, pages in enumerate((self.pool.keys[kind], self.pool.values[kind])):
            numbers = normal(*pages.shape, seed=7 + seed) * (50 if dtype is torch.int8 else 1)
            pages.copy_(to_fp8(numbers) if dtype is FP8 else numbers)
        for scales in (self.pool.key_scales, self.pool.value_scales):
            if scales:
                scales[kind].copy_(normal(*scales[kind].shape, seed=9).abs() / 50)

    def step(self, counts: list[int], *, known: bool = True, apart: bool = False) -> LayerKV:
        """known: whether the host knows the numbers too. apart: as of PagedKV."""
        lengths = self.lengths[: len(counts)]
        numbers = [
            torch.tensor(x, dtype=torch.int64, device=self.device) for x in (lengths, counts)
        ]
        spans = list(zip(lengths, counts, strict=True)) if known else None
        table = self.table[: len(counts)]
        step = PagedKV(self.pool, {self.kind: table}, *numbers, spans=spans, apart=apart)
        return step.layer(0)

    @property
    def stored(self) -> list[Tensor]:
        pool = self.pool
        kinds = (pool.keys, pool.values, pool.key_scales, pool.value_scales)
        return [as_bytes(pages[self.kind].clone()) for pages in kinds if pages]

    def inputs(self, tokens: int, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of a step."""
        heads, size = self.kind.num_kv_heads, self.kind.head_dim
        shapes = (tokens, heads * group, size), (tokens, heads, size), (tokens, heads, size)
        q, k, v = (
            normal(*shape, seed=seed, dtype=dtype, device=self.device)
            for seed, shape in enumerate(shapes)
        )
        return q, k, v
