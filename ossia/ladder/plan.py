"""The settings that all runs of a ladder share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from ossia.config import ModelConfig
from ossia.errors import OssiaError
from ossia.ladder import rungs
from ossia.ladder.rungs import REACH
from ossia.ladder.statistics import MOST_SEEDS
from ossia.options import PRECISIONS, Option, Options, TrainingMachineOptions
from ossia.train.settings import Precision, Settings

STRETCHES = 4 * REACH  # of positions within the longest, each with bits per byte of its own

_EVALUATIONS = 8  # in the course of a run


class Scale(StrEnum):
    """A size of models and their training; each setting of it can be set alone too."""

    CPU = "cpu"  # half a million active parameters and 256,000 tokens: half an hour of two cores
    GPU = "gpu"  # 20 million active parameters and 26 million tokens, for one GPU


_SCALES: dict[Scale, dict[str, Any]] = {
    Scale.CPU: {},  # the defaults
    Scale.GPU: {
        "layers": 8,
        "hidden": 384,
        "vocab_size": 16_384,
        "length": 1024,
        "batch_size": 32,
        "steps": 800,
        "learning_rate": 1e-3,
        "dtype": Precision.BFLOAT16,
        "held_out": 1 << 19,
    },
}


@dataclass(frozen=True)
class LadderMachine(TrainingMachineOptions):
    """What a ladder is trained on."""

    jobs: Annotated[
        int | None,
        Option(
            "Runs to train at once, each in a process of its own.",
            minimum=1,
            default="as many as a GPU has room for, at most 4; 1 on a CPU",
        ),
    ] = None


@dataclass(frozen=True)
class ReportOptions(Options):
    """What the report holds besides the ladder's own losses."""

    measure: Annotated[bool, Option("Measure speeds and memory again.")] = False
    turns: Annotated[int, Option("Times to measure; the median counts.", minimum=1)] = 7
    beside: Annotated[
        str | None,
        Option(
            "The folder of another ladder, or its results.json, such as one of smaller models: the "
            "report says what stands clear of the noise in one of them only.",
            metavar="PATH",
            default="none",
        ),
    ] = None


@dataclass(frozen=True)
class Plan(Options):
    """The settings that all runs of a ladder share, checked when it is made."""

    scale: Annotated[
        Scale,
        Option(
            "Defaults of the settings below: small models for a CPU, or models of 20 million "
            "active parameters and 26 million tokens for a GPU."
        ),
    ] = Scale.CPU
    data: Annotated[
        str,
        Option(
            "A UTF-8 text or .jsonl file, a folder of them, a pattern such as 'src/**/*.py', or "
            "stdlib: this Python's standard library.",
            metavar="PATH",
        ),
    ] = "stdlib"
    rungs: Annotated[
        str,
        Option(
            f"all, or some of: {', '.join(rung.name for rung in rungs.RUNGS)}.", metavar="NAME,..."
        ),
    ] = "all"
    layers: Annotated[int, Option("Layers of every model.")] = 4
    hidden: Annotated[int, Option("Hidden size of every model: a multiple of 96.")] = 96
    vocab_size: Annotated[int, Option("Size of the vocabulary to learn.")] = 1024
    length: Annotated[
        int, Option(f"Tokens in a sequence; evaluation reads up to {REACH} times as many.")
    ] = 256
    batch_size: Annotated[int, Option("Sequences in a batch.")] = 4
    steps: Annotated[int, Option("Batches to train each run on.")] = 250
    learning_rate: Annotated[float, Option("Peak learning rate; it falls to 0.")] = 3e-3
    dtype: Annotated[
        Precision,
        Option(
            "Precision of matrix products; bfloat16 is autocast.",
            shorthands=PRECISIONS,
        ),
    ] = Precision.FLOAT32
    held_out: Annotated[int, Option("Most bytes of held-out text to evaluate on.", minimum=1)] = (
        64 << 10
    )
    compile: Annotated[bool, Option("Compile the layers of every rung first.")] = False
    seeds: Annotated[
        int,
        Option("Runs of each rung; more can be added later.", minimum=1, maximum=MOST_SEEDS),
    ] = 3

    def __post_init__(self) -> None:
        """Raise OssiaError for values that cannot work."""
        super().__post_init__()
        if REACH * self.length % STRETCHES:
            multiple = STRETCHES // REACH
            raise OssiaError(f"--length must be a multiple of {multiple}, not {self.length}")
        if self.dtype is Precision.AUTO:
            raise OssiaError("--dtype auto: a ladder needs float32 or bfloat16, the same for all")
        rungs.chosen(self.rungs)
        self.foot()
        self.settings(packed=True, seed=0)

    @classmethod
    def at(cls, scale: Scale | str, values: Mapping[str, Any]) -> Plan:
        """A plan of these values, and of the scale's for all others."""
        if scale not in list(Scale):
            return cls(**{**values, "scale": scale})  # refuses it
        return cls(**{**_SCALES[Scale(scale)], **values, "scale": Scale(scale)})

    def foot(self) -> ModelConfig:
        """GPT-2 at this size. Raises OssiaError for a size that some rung cannot divide."""
        return rungs.gpt2(
            layers=self.layers,
            hidden=self.hidden,
            length=self.length,
            vocab_size=self.vocab_size,
        )

    def settings(self, *, packed: bool, seed: int) -> Settings:
        """The settings of one run; `packed` experts are rounded to MXFP4 in its last quarter.

        Raises OssiaError for values that cannot work.
        """
        interval = math.ceil(self.steps / _EVALUATIONS)
        return Settings(
            data=self.data,
            vocab_size=self.vocab_size,
            steps=self.steps,
            batch_size=self.batch_size,
            length=self.length,
            learning_rate=self.learning_rate,
            dtype=self.dtype,
            warmup=math.ceil(self.steps / 10),
            mxfp4_steps=math.ceil(self.steps / 4) if packed else 0,
            seed=seed,
            eval_every=interval,
            save_every=interval,
        )
