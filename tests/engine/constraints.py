"""A constraint for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Allows:
    """Allows the ids of the first set, after one token those of the second, and so on; the last
    set stays."""

    def __init__(self, *allowed: Iterable[int]) -> None:
        self.allowed, self.accepted = allowed, list[int]()

    def mask(self, bits: memoryview) -> None:
        for token in self.allowed[min(len(self.accepted), len(self.allowed) - 1)]:
            bits[token // 32] |= 1 << token % 32

    def accept(self, ids: Sequence[int]) -> None:
        self.accepted.extend(ids)

    def copy(self) -> Allows:
        other = Allows(*self.allowed)
        other.accepted = list(self.accepted)
        return other
