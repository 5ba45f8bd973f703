"""The results of a ladder: those of each run, and those of all runs together, which are reported.

The files are the same values as JSON (`ossia.system.records`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ossia.config import ExpertFormat
from ossia.ladder.plan import Plan
from ossia.ladder.statistics import Difference, OverSeeds
from ossia.measure.machine import Description
from ossia.measure.speed import Spread
from ossia.system import records
from ossia.system.records import Inline


class Reading(StrEnum):
    """How a trained model reads texts longer than those of its training."""

    AS_TRAINED = "as trained"
    YARN = "yarn"  # set to the factor of the longer text, without further training


# One run: a rung with one seed.


@dataclass(frozen=True)
class Evaluation:
    """A point of a training curve."""

    step: int
    seconds: float
    loss: float | None  # nats per token, of the step's own batch
    held_out_bits_per_byte: float
    expert_shares: dict[str, tuple[float, ...]] | None = None  # by layer


@dataclass(frozen=True)
class LongerTexts:
    """Bits per byte in windows of several times the training length, by that factor, and within the
    longest by stretches of positions.
    """

    bits_per_byte: dict[int, float]
    by_position: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One finished run. `bits_per_byte` is with the experts in the rung's own format."""

    tokens: int
    seconds: float
    curve: tuple[Evaluation, ...]
    bits_per_byte: float
    by_format: dict[ExpertFormat, float]
    longer: dict[Reading, LongerTexts]


# All runs.


@dataclass(frozen=True)
class TrainedText:
    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class HeldOutText:
    name: str
    bytes: int
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Text:
    """The text of a ladder; `separator` is the id between two documents."""

    separator: int
    train: TrainedText
    held_out: tuple[HeldOutText, ...]


@dataclass(frozen=True)
class Costs:
    """What follows from a config alone."""

    parameters: int
    active_parameters: int
    training_flops_per_token: float
    kv_bytes_per_token: int
    kv_bytes_at_reach: int  # of a text of REACH times the training length
    checkpoint_bytes: int
    training_state_bytes: int  # weights, gradients and moments


@dataclass(frozen=True)
class AtStep:
    """A figure between two evaluations, at a `step` that is in general no whole number."""

    step: float
    value: Inline[OverSeeds]


@dataclass(frozen=True)
class CurvePoint:
    """The mean over the seeds, at a given number of training FLOPs."""

    step: int
    flops: float
    bits_per_byte: float


@dataclass(frozen=True)
class WindowLength:
    """Bits per byte in windows of `tokens` tokens."""

    tokens: int
    bits_per_byte: Inline[OverSeeds]


@dataclass(frozen=True)
class Stretch:
    """The mean over the seeds at positions from the first up to, but not including, the second."""

    positions: tuple[int, int]
    bits_per_byte: float

    @property
    def middle(self) -> float:
        return sum(self.positions) / 2


@dataclass(frozen=True)
class Reach:
    """Bits per byte by length of the windows, and within the longest by position."""

    by_length: tuple[WindowLength, ...]
    by_position: tuple[Stretch, ...]


@dataclass(frozen=True)
class RungResult:
    """One rung; its differences are to the rung below, which the foot does not have."""

    name: str
    title: str
    meaning: str
    field: str
    costs: Inline[Costs]
    bits_per_byte: OverSeeds
    loss: OverSeeds  # nats per token
    at_equal_flops: AtStep
    curve: tuple[CurvePoint, ...]
    by_format: dict[ExpertFormat, OverSeeds]
    longer: dict[Reading, Reach]
    difference: Difference | None = None
    difference_at_equal_flops: Difference | None = None


class Topic(StrEnum):
    LENGTH = "length"
    FORMAT = "format"


@dataclass(frozen=True)
class Comparison:
    """A question about longer texts or about rounding, answered by a paired difference."""

    about: Topic
    question: str
    answer: Inline[Difference]


@dataclass(frozen=True)
class RungMeasurement:
    """Tokens per second, and the bytes that autograd holds between forward and backward pass."""

    training: Spread
    decoding: Spread
    activation_bytes: int


@dataclass(frozen=True)
class Measurements:
    """Speed and memory of every rung by name, measured in `turns` rounds over all of them."""

    date: str  # YYYY-MM-DD
    machine: Description
    threads: int
    backend: str
    turns: int
    rungs: dict[str, RungMeasurement]


@dataclass(frozen=True)
class Beside:
    """Another ladder, with the answers of it that ladders of any size have, by what is asked."""

    active_parameters: int
    tokens: int
    seeds: int
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Results:
    """All that the report shows, from the foot up. `equal_flops` is what the cheapest rung's whole
    training takes; `climb` is the difference between the top and the foot.
    """

    command: str
    versions: dict[str, str]
    threads: int
    plan: Plan
    text: Text
    tokens: int  # that each run learned from
    equal_flops: float
    rungs: tuple[RungResult, ...]
    climb: Difference
    comparisons: tuple[Comparison, ...]
    measured: Measurements | None = None
    card: str | None = None  # the GPU that the runs were trained on, if it was one
    beside: Beside | None = None

    def to_json(self) -> dict[str, object]:
        return records.to_json(self)

    @classmethod
    def from_json(cls, data: object) -> Results:
        """Raises ValueError, naming the place, for data that are not `to_json`'s."""
        return records.from_json(cls, data)
