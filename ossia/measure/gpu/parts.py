"""What one process measures, and how it tells: a line of JSON for each figure, as soon as it is
known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from ossia.errors import brief
from ossia.measure.gpu.cases import Case, Measure, Side, Suite
from ossia.train.device import wait_for

SKIPPED = "skipped"


class Kind(StrEnum):
    LIMITS = "limits"
    FILES = "files"  # writes the checkpoint that is loaded
    SERVED = "served"
    TRAINED = "trained"


@dataclass(frozen=True)
class Part:
    """What one process does. seconds: after which it is stopped."""

    kind: Kind
    model: str = ""
    side: Side = Side.OSSIA
    seconds: float = 30.0

    def cases(self, suite: Suite) -> list[Case]:
        """The rows of which it measures one side."""
        if self.kind is Kind.SERVED:
            return [*suite.model(self.model).cases(self.side)]
        if self.kind is Kind.TRAINED:
            return [*suite.training(self.model).cases(self.side)]
        return []

    def __str__(self) -> str:
        parts = (self.kind, self.model, self.side if self.side is Side.PEER else "")
        return " ".join(part for part in parts if part)


def parts(suite: Suite) -> list[Part]:
    """All that has rows, what matters most first: the first model waits for its files, which are
    written while another is trained.
    """
    first, *others = suite.served
    return [
        *(Part(Kind.TRAINED, m.name, seconds=40) for m in suite.trained if m.has_peer),
        Part(Kind.SERVED, first.name, seconds=75),
        *(Part(Kind.SERVED, m.name, Side.PEER) for m in suite.served if m.peer_decodes),
        *(Part(Kind.TRAINED, m.name, Side.PEER, 20) for m in suite.trained if m.has_peer),
        *(Part(Kind.SERVED, m.name) for m in others),
        *(Part(Kind.TRAINED, m.name) for m in suite.trained if not m.has_peer),
    ]


@dataclass(frozen=True)
class Told:
    """A figure of one side of a row, or why there is none."""

    case: Case
    side: Side
    value: float | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "case": asdict(self.case)}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Told:
        """Raises KeyError, TypeError or ValueError for what is none."""
        case = record["case"]
        found = Case(case["model"], Measure(case["measure"]), case["batch"], case["length"])
        return cls(found, Side(record["side"]), record["value"], record["why"])


@dataclass
class Teller:
    """Measures the cases of a part one by one. A failure is that case's, and the next is tried.

    until: of `time.monotonic`, after which nothing is begun.
    """

    part: Part
    suite: Suite
    device: torch.device
    until: float
    tell: Callable[[Told], None]
    folder: Path | None = None

    def __post_init__(self) -> None:
        self._left = dict.fromkeys(self.part.cases(self.suite))

    def measure(self, case: Case, work: Callable[[], float], needs: float = 1.0) -> None:
        """Measure a case by calling `work`, which takes about `needs` seconds."""
        self._left.pop(case)
        if time.monotonic() + needs > self.until:
            self.tell(Told(case, self.part.side, why=f"{SKIPPED}: the time was up"))
            return
        try:
            self.tell(Told(case, self.part.side, work()))
        except Exception as error:
            self.tell(Told(case, self.part.side, why=reason(error)))
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()

    def give_up(self, error: BaseException) -> None:
        """What was not measured yet cannot be."""
        for case in self._left:
            self.tell(Told(case, self.part.side, why=reason(error)))
        self._left.clear()


@contextmanager
def told(teller: Teller) -> Iterator[Teller]:
    """What ends the block early is why the rest was not measured."""
    try:
        yield teller
    except Exception as error:
        teller.give_up(error)


def reason(error: BaseException) -> str:
    """One line on an error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the card's memory ran out"
    return brief(error, 160)


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """How long a card takes for some work."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start
