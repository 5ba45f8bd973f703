"""Tensors on disk are listed in few lines, and those that differ in kind stay apart."""

import pytest

from ossia.families.mapping import Row
from ossia.insight.moves import Move, fold, ranges


def test_rows_fold_over_numbers_but_not_over_unlike_shapes():
    rows = [
        *(Row(f"h.{i}.fused", f"layers.{i}.{part}", their_index=(slice(n, n + 2),))
          for i in range(3) for n, part in ((0, "q"), (2, "k"))),
        Row("h.0.ln_1", "layers.0.norm", transpose=True),
    ]  # fmt: skip
    kinds = {"h.0.fused": "(4)", "h.1.fused": "(4)", "h.2.fused": "(5)", "h.0.ln_1": "(2)"}
    assert list(fold(rows, kinds)) == [
        Move("h.0,1.fused[0:2]", "layers.0,1.q", "(4)"),
        Move("h.0,1.fused[2:4]", "layers.0,1.k", "(4)"),
        Move("h.2.fused[0:2]", "layers.2.q", "(5)"),
        Move("h.2.fused[2:4]", "layers.2.k", "(5)"),
        Move("h.0.ln_1", "layers.0.norm", "(2) transposed"),
    ]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "3"),
        ([0, 1], "0,1"),
        ([0, 1, 2], "0-2"),
        ([0, 2, 4, 6], "0,2,...,6"),
        ([0, 1, 3], "0,1,3"),
        ([0, 2, 4], "0,2,4"),
        ([], ""),
        ([0, 1, 2, 3, 5, 7, 8, 9], "0-3,5,7-9"),
        ([0, 1, 2, 4, 6, 8, 10, 31], "0-2,4,6,...,10,31"),
        ([*range(47), *range(48, 94)], "0-46,48-93"),
    ],
)
def test_ranges(numbers, text):
    assert ranges(numbers) == text
