"""The settings that all runs of a ladder share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from ossia.config import ModelConfig
from ossia.errors import OssiaError
from ossia.ladder import rungs
from ossia.ladder.rungs import REACH
from ossia.ladder.statistics import MOST_SEEDS
from ossia.options import Option, Options
from ossia.train.settings import Settings

STRETCHES = 4 * REACH  # of positions within the longest, each with bits per byte of its own

_EVALUATIONS = 8  # in the course of a run


@dataclass(frozen=True)
class Plan(Options):
    """The settings that all runs of a ladder share, checked when it is made."""

    data: Annotated[
        str,
        Option(
            "A UTF-8 text or .jsonl file, a folder of them, or stdlib: this Python's standard "
            "library.",
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
        rungs.chosen(self.rungs)
        self.foot()
        self.settings(packed=True, seed=0)

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
            warmup=math.ceil(self.steps / 10),
            mxfp4_steps=math.ceil(self.steps / 4) if packed else 0,
            seed=seed,
            eval_every=interval,
            save_every=interval,
        )
