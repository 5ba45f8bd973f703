"""The settings that all runs of a ladder share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ossia.config import ModelConfig
from ossia.errors import OssiaError
from ossia.ladder import rungs
from ossia.ladder.rungs import REACH
from ossia.ladder.statistics import MOST_SEEDS
from ossia.train.settings import Settings

STRETCHES = 4 * REACH  # of positions within the longest, each with bits per byte of its own

_EVALUATIONS = 8  # in the course of a run


@dataclass(frozen=True)
class Plan:
    """The settings that all runs of a ladder share, checked when it is made."""

    data: str = "stdlib"
    rungs: str = "all"
    layers: int = 4
    hidden: int = 96
    vocab_size: int = 1024
    length: int = 256  # tokens
    batch_size: int = 4  # sequences
    steps: int = 250
    learning_rate: float = 3e-3
    seeds: int = 3  # 0, 1, ...; a ladder can be given more later

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise OssiaError(f"--seeds must lie between 1 and {MOST_SEEDS}, not {self.seeds}")
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
