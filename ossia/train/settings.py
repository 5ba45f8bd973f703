"""All that decides what a run computes, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import ClassVar, Self

from ossia.config import ExpertFormat
from ossia.errors import OssiaError

_LARGEST_SEED = 2**32 - 1  # others are derived from it by multiplying


class Precision(StrEnum):
    """Of the matrix products; weights, moments and sums are float32 in either."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Schedule(StrEnum):
    """How the learning rate falls after its rise."""

    COSINE = "cosine"  # half a cosine, to zero
    WSD = "wsd"  # stays, then falls in a straight line over the last `decay` steps, to zero


class Optimizer(StrEnum):
    ADAMW = "adamw"
    MUON = "muon"  # for the hidden matrices, AdamW for all else


class TooLong(StrEnum):
    """What becomes of a conversation longer than a row."""

    ERROR = "error"
    TRUNCATE = "truncate"  # its end goes
    SKIP = "skip"


@dataclass(frozen=True)
class Training:
    """What the loop obeys, whatever it trains on. A step is one batch; a run is the same however
    often it is stopped, on however many processes.
    """

    POSITIVE: ClassVar = ("steps", "batch_size", "accumulate", "length", "eval_every", "save_every")
    MOST_WARMUP: ClassVar = 100  # steps, where `warmup` is not given
    CHOICES: ClassVar = {
        "experts": ExpertFormat,
        "dtype": Precision,
        "schedule": Schedule,
        "optimizer": Optimizer,
    }

    steps: int = 2000
    batch_size: int = 16  # sequences
    accumulate: int = 1  # parts of a batch, one forward and backward pass each
    length: int = 256  # tokens
    optimizer: str = Optimizer.ADAMW.value
    learning_rate: float = 2e-3
    final_learning_rate: float = 0.0
    warmup: int | None = None  # steps; None is a tenth of all, at most MOST_WARMUP
    schedule: str = Schedule.COSINE.value
    decay: int = 0  # steps, of `wsd`; 0 is a fifth of all, or what the rise leaves
    weight_decay: float = 0.1  # of matrices only
    clip: float = 1.0  # largest norm of the gradient
    balance: float = 0.01  # weight of the routers' load-balancing loss
    z_loss: float = 0.0  # weight of the squared log-sum-exp of the logits
    mxfp4_steps: int = 0  # the last steps see the experts' weights as MXFP4 will round them
    seed: int = 0
    experts: str = ExpertFormat.MXFP4.value  # how the checkpoint holds them
    dtype: str = Precision.FLOAT32.value
    recompute: bool = False  # layers in the backward pass, for their memory
    expert_parallel: bool = False  # on several processes each holds whole experts
    eval_every: int = 250
    save_every: int = 250

    def __post_init__(self) -> None:
        """Raise OssiaError for a value that cannot be."""
        for name in self.POSITIVE:
            if getattr(self, name) < 1:
                raise OssiaError(f"{option(name)} must be at least 1, not {getattr(self, name)}")
        _refuse_negative(self, "seed")
        if self.seed > _LARGEST_SEED:
            raise OssiaError(f"--seed must be at most {_LARGEST_SEED}, not {self.seed}")
        for name in ("weight_decay", "balance", "z_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OssiaError(f"{option(name)} must be 0 or more, not {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise OssiaError(f"{option(name)} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise OssiaError(
                "--final-learning-rate must lie between 0 and --learning-rate "
                f"{self.learning_rate:g}, not {self.final_learning_rate:g}"
            )
        for name in ("mxfp4_steps", "warmup", "decay"):
            _refuse_more_than_steps(self, name)
        for rows in self.rows:
            if rows % self.accumulate:
                raise OssiaError(
                    f"--accumulate {self.accumulate} does not divide a batch of {rows} sequences"
                )
        if self.decay and self.schedule != Schedule.WSD:
            raise OssiaError("--decay is of --schedule wsd")
        if self.steps and self.rise + self.decay > self.steps:
            raise OssiaError(
                f"--warmup {self.warmup} and --decay {self.decay} are more than "
                f"--steps {self.steps}"
            )
        for name, kind in self.CHOICES.items():
            if getattr(self, name) not in list(kind):
                values = " or ".join(kind)
                raise OssiaError(f"{option(name)} must be {values}, not {getattr(self, name)}")

    @property
    def rows(self) -> tuple[int, ...]:
        """Sequences in a batch, of each length that the run has."""
        return (self.batch_size,)

    @property
    def rise(self) -> int:
        """Steps in which the learning rate rises: `warmup`, or what suits the steps."""
        if self.warmup is not None:
            return self.warmup
        return min(self.MOST_WARMUP, self.steps // 10, self.steps - self.decay)

    def settled(self) -> Self:
        """With what follows from the steps written out, for the record."""
        return replace(self, warmup=self.rise)


@dataclass(frozen=True)
class Settings(Training):
    """Of `ossia train`: a model from a text."""

    data: str = "stdlib"
    config: str = "small-gpt-oss"
    vocab_size: int = 2048
    long_length: int = 0  # of the last `long_steps` steps, whose batches have fewer sequences
    long_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_negative(self, "long_length")
        _refuse_more_than_steps(self, "long_steps")
        if bool(self.long_length) != bool(self.long_steps):
            raise OssiaError("--long-length and --long-steps go together")
        if self.long_length and (self.batch_size * self.length) % self.long_length:
            raise OssiaError(
                f"--long-length {self.long_length} does not divide a batch of "
                f"{self.batch_size} x {self.length} tokens"
            )

    @property
    def rows(self) -> tuple[int, ...]:
        if not self.long_length:
            return (self.batch_size,)
        return self.batch_size, self.batch_size * self.length // self.long_length


@dataclass(frozen=True)
class FineTuneSettings(Training):
    """Of `ossia finetune`: a checkpoint and conversations."""

    POSITIVE: ClassVar = ("batch_size", "accumulate", "eval_every", "save_every")
    MOST_WARMUP: ClassVar = 10
    CHOICES: ClassVar = {
        "experts": ("", *ExpertFormat),
        "dtype": Precision,
        "schedule": Schedule,
        "optimizer": Optimizer,
        "too_long": TooLong,
    }

    model: str = ""  # a folder, or a name on the hub
    data: str = ""
    eval_data: str = ""  # "" holds a share of the data out
    eval_share: float = 0.05  # of the conversations; 0 is none
    epochs: float = 3.0
    steps: int = 0  # 0 is as many as the epochs make
    batch_size: int = 8  # rows
    length: int = 0  # of a row; 0 is the model's context, of that at most 2048
    too_long: str = TooLong.ERROR.value
    date: str = ""  # that prompts say where a conversation has none; "" is the day of the start
    train_router: bool = False
    lora: bool = False  # updates of this rank of the targets, rather than all weights
    rank: int = 16
    alpha: float = 32.0
    lora_dropout: float = 0.0
    targets: str = "attention,mlp,experts"
    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    balance: float = 0.0
    experts: str = ""  # "" is as the checkpoint has them
    eval_every: int = 50
    save_every: int = 100

    def __post_init__(self) -> None:
        for name in ("model", "data"):
            if not getattr(self, name):
                raise OssiaError(f"{option(name)} is needed")
        for name in ("steps", "length"):
            _refuse_negative(self, name)
        if not 0 <= self.eval_share < 1:
            raise OssiaError(f"--eval-share must be 0 or more and less than 1: {self.eval_share}")
        if not 0 < self.epochs < math.inf:
            raise OssiaError(f"--epochs must be above 0, not {self.epochs}")
        if self.date and not _is_day(self.date):
            raise OssiaError(f"--date must be a day, YYYY-MM-DD, not {self.date}")
        if self.balance and not self.train_router:
            raise OssiaError("--balance moves routers: it needs --train-router")
        self._check_lora()
        super().__post_init__()

    def _check_lora(self) -> None:
        if not self.lora:
            for name in ("rank", "alpha", "lora_dropout", "targets"):
                if getattr(self, name) != getattr(FineTuneSettings, name):
                    raise OssiaError(f"{option(name)} is of low-rank updates: it needs --lora")
            return
        unknown = set(self.targets.split(",")) - {"attention", "mlp", "experts"}
        if unknown:
            raise OssiaError(
                f"--targets must be some of attention, mlp, experts, not {sorted(unknown)[0]!r}"
            )
        if self.rank < 1:
            raise OssiaError(f"--rank must be at least 1, not {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise OssiaError(f"--alpha must be above 0, not {self.alpha}")
        if not 0 <= self.lora_dropout < 1:
            raise OssiaError(
                f"--lora-dropout must be 0 or more and less than 1, not {self.lora_dropout}"
            )
        if self.optimizer == Optimizer.MUON or self.expert_parallel:
            raise OssiaError("--lora goes with neither --optimizer muon nor --expert-parallel")
        if self.mxfp4_steps and "experts" not in self.targets:
            raise OssiaError("--mxfp4-steps needs experts among --targets")


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _refuse_negative(settings: Training, name: str) -> None:
    if getattr(settings, name) < 0:
        raise OssiaError(f"{option(name)} must not be negative, not {getattr(settings, name)}")


def _refuse_more_than_steps(settings: Training, name: str) -> None:
    most = settings.steps or math.inf  # not known yet, where 0 stands for what the data makes
    if not 0 <= (getattr(settings, name) or 0) <= most:
        raise OssiaError(f"{option(name)} must lie between 0 and --steps {settings.steps}")


def option(name: str) -> str:
    """How the command line spells a setting."""
    return "--" + name.replace("_", "-")


def learning_rate(settings: Training, step: int) -> float:
    """Of step 0, 1, ...: a linear rise over the first steps, then the schedule's fall, which
    reaches the final rate after the last step.

    WSD is warm-up, stable, decay: Hu et al. 2024, https://arxiv.org/abs/2404.06395.
    """
    peak, final, rise = settings.learning_rate, settings.final_learning_rate, settings.rise
    if step < rise:
        return peak * (step + 1) / rise
    if settings.schedule == Schedule.WSD:
        decay = settings.decay or max(1, min(settings.steps // 5, settings.steps - rise))
        left = min(1.0, (settings.steps - step) / decay)
    else:
        done = (step - rise) / max(1, settings.steps - rise)
        left = (1 + math.cos(math.pi * done)) / 2
    return final + (peak - final) * left
