"""The settings of a training run: everything that decides what it computes, each stated once with
its default, bounds and help, and checked when the dataclass is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import Annotated, ClassVar, Self

from ossia.config import ExpertFormat
from ossia.errors import OssiaError
from ossia.options import IGNORE_UNKNOWN_KEYS, PRECISIONS, Option, Options, flag

_LARGEST_SEED = 2**32 - 1  # `derived_seed` stays within 64 bits
TARGETS = ("attention", "mlp", "experts")  # of low-rank updates


class Precision(StrEnum):
    """Of matrix products; weights, moments and sums are float32 in any case."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    AUTO = "auto"  # until the run has measured which of them is faster


class Schedule(StrEnum):
    """How the learning rate falls after its warm-up."""

    COSINE = "cosine"  # half a cosine
    WSD = "wsd"  # constant, then linear over the last `decay` steps


class Optimizer(StrEnum):
    ADAMW = "adamw"
    MUON = "muon"  # for hidden matrices; AdamW for everything else


class TooLong(StrEnum):
    """What to do with a conversation longer than a row."""

    ERROR = "error"
    TRUNCATE = "truncate"  # drop its end
    SKIP = "skip"


def _warmup(most: int) -> Option:
    return Option(
        "Steps of linear learning-rate warm-up.", default=f"a tenth of --steps, at most {most}"
    )


@dataclass(frozen=True)
class Training(Options):
    """The settings of the training loop, whatever it trains on. A step is one batch. A run computes
    the same however often it is stopped and resumed.
    """

    MOST_WARMUP: ClassVar = 100  # steps, if `warmup` is None

    steps: Annotated[int, Option("Batches to train on.", minimum=1)] = 2000
    batch_size: Annotated[int, Option("Sequences in a batch.", minimum=1)] = 16
    accumulate: Annotated[
        int, Option("Parts that a batch is split into, to save memory.", minimum=1)
    ] = 1
    length: Annotated[int, Option("Tokens in a sequence.", minimum=1)] = 256
    optimizer: Annotated[
        Optimizer, Option("muon: Muon for hidden matrices, AdamW for everything else.")
    ] = Optimizer.ADAMW
    learning_rate: Annotated[float, Option("Peak learning rate.", names=("--lr",), above=0)] = 2e-3
    final_learning_rate: Annotated[
        float, Option("Learning rate after the last step.", names=("--final-lr",), minimum=0)
    ] = 0.0
    warmup: Annotated[int | None, _warmup(MOST_WARMUP)] = None
    schedule: Annotated[
        Schedule,
        Option("Decay by half a cosine, or stay constant until the last --decay steps (wsd)."),
    ] = Schedule.COSINE
    decay: Annotated[
        int, Option("Steps of wsd's decay.", default="a fifth of --steps, or what warm-up leaves")
    ] = 0
    weight_decay: Annotated[float, Option("Weight decay of matrices.", minimum=0)] = 0.1
    clip: Annotated[float, Option("Maximum norm of the gradient.", above=0)] = 1.0
    balance: Annotated[float, Option("Weight of the routers' load-balancing loss.", minimum=0)] = (
        0.01
    )
    z_loss: Annotated[
        float, Option("Weight of the z-loss: the logits' squared log-sum-exp.", minimum=0)
    ] = 0.0
    mxfp4_steps: Annotated[
        int, Option("Steps at the end that train with the experts rounded to MXFP4.")
    ] = 0
    seed: Annotated[int, Option("Seed of everything random.", minimum=0, maximum=_LARGEST_SEED)] = 0
    dtype: Annotated[
        Precision,
        Option(
            "Precision of matrix products; bfloat16 is autocast, auto the faster of both, as "
            "measured on this machine.",
            shorthands=PRECISIONS,
        ),
    ] = Precision.FLOAT32
    recompute: Annotated[
        bool, Option("Save memory: recompute each layer's activations in the backward pass.")
    ] = False
    expert_parallel: Annotated[
        bool, Option("Under torchrun: distribute whole experts over the processes.")
    ] = False
    eval_every: Annotated[int, Option("Steps between held-out evaluations.", minimum=1)] = 250
    save_every: Annotated[int, Option("Steps between saved states.", minimum=1)] = 250

    def __post_init__(self) -> None:
        """Raise OssiaError for values that cannot work."""
        super().__post_init__()
        if self.final_learning_rate > self.learning_rate:
            raise OssiaError(
                "--final-learning-rate must be at most --learning-rate "
                f"{self.learning_rate:g}, not {self.final_learning_rate:g}"
            )
        self._refuse_more_than_steps("mxfp4_steps", "warmup", "decay")
        for rows in self.rows:
            if rows % self.accumulate:
                raise OssiaError(
                    f"--accumulate {self.accumulate} does not divide a batch of {rows} sequences"
                )
        if self.decay and self.schedule is not Schedule.WSD:
            raise OssiaError("--decay needs --schedule wsd")
        if self.steps and self.rise + self.decay > self.steps:
            raise OssiaError(
                f"--warmup {self.warmup} and --decay {self.decay} are more than "
                f"--steps {self.steps}"
            )

    def _refuse_more_than_steps(self, *names: str) -> None:
        most = self.steps or math.inf  # 0: unknown until the data is read
        for name in names:
            if not 0 <= (getattr(self, name) or 0) <= most:
                raise OssiaError(f"{flag(name)} must lie between 0 and --steps {self.steps}")

    @property
    def rows(self) -> tuple[int, ...]:
        """Sequences in a batch, for each sequence length of the run."""
        return (self.batch_size,)

    @property
    def rise(self) -> int:
        """Steps of warm-up: `warmup`, or what suits the number of steps."""
        if self.warmup is not None:
            return self.warmup
        return min(self.MOST_WARMUP, self.steps // 10, self.steps - self.decay)

    def settled(self) -> Self:
        """The same settings with what follows from the steps written out, for the record."""
        return replace(self, warmup=self.rise)


@dataclass(frozen=True)
class Settings(Training):
    """The settings of `ossia train`: a model from a text."""

    data: Annotated[
        str,
        Option(
            "A UTF-8 text or .jsonl file, a folder of them, a pattern such as 'src/**/*.py', or "
            "stdlib: this Python's standard library.",
            metavar="PATH",
        ),
    ] = "stdlib"
    config: Annotated[
        str,
        Option(
            "small-gpt-oss, small-gpt2, small-qwen3, or the config.json of a supported family.",
            metavar="NAME_OR_FILE",
        ),
    ] = "small-gpt-oss"
    ignore_unknown_keys: Annotated[bool, IGNORE_UNKNOWN_KEYS] = False
    vocab_size: Annotated[int, Option("Size of the vocabulary to learn.")] = 2048
    vocabulary_data: Annotated[
        str,
        Option(
            "More text for the vocabulary alone, in the formats of --data.",
            metavar="PATH",
            default="none",
        ),
    ] = ""
    long_length: Annotated[
        int,
        Option(
            "Tokens in a sequence during the last --long-steps, in batches of as many tokens.",
            minimum=0,
        ),
    ] = 0
    long_steps: Annotated[int, Option("Steps at the end that use --long-length.")] = 0
    experts: Annotated[ExpertFormat, Option("Format of the experts in the checkpoint.")] = (
        ExpertFormat.MXFP4
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_more_than_steps("long_steps")
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
    """The settings of `ossia finetune`: a checkpoint and conversations."""

    MOST_WARMUP: ClassVar = 10
    MOST_LENGTH: ClassVar = 2048  # tokens, if `length` is 0: most conversations are shorter

    model: Annotated[
        str,
        Option(
            "Checkpoint folder, or a name on the Hugging Face hub; required for a new run.",
            metavar="PATH_OR_HUB_NAME",
            names=("-m",),
        ),
    ] = ""
    data: Annotated[
        str,
        Option(
            "Conversations as JSON lines (messages, and optionally tools and reasoning_effort); "
            "required for a new run.",
            metavar="FILE",
        ),
    ] = ""
    eval_data: Annotated[
        str,
        Option(
            "Held-out conversations, in the format of --data.",
            metavar="FILE",
            default="a share of --data",
        ),
    ] = ""
    eval_share: Annotated[
        float,
        Option("Share of --data to hold out if there is no --eval-data.", minimum=0, below=1),
    ] = 0.05
    epochs: Annotated[float, Option("Passes over the conversations.", above=0)] = 3.0
    too_long: Annotated[TooLong, Option("What to do with a conversation longer than a row.")] = (
        TooLong.ERROR
    )
    date: Annotated[
        str,
        Option(
            "Date in the prompts of conversations that have none.",
            metavar="YYYY-MM-DD",
            default="today",
        ),
    ] = ""
    ignore_unknown_keys: Annotated[bool, IGNORE_UNKNOWN_KEYS] = False
    train_router: Annotated[bool, Option("Train the experts' routers too.")] = False
    lora: Annotated[
        bool, Option("Train low-rank updates of --targets, or every weight.", off="--full")
    ] = False
    rank: Annotated[int, Option("Rank of the updates.", minimum=1)] = 16
    alpha: Annotated[float, Option("Updates are scaled by alpha / rank.", above=0)] = 32.0
    lora_dropout: Annotated[
        float, Option("Dropout on the updates' inputs.", metavar="P", minimum=0, below=1)
    ] = 0.0
    targets: Annotated[
        str, Option(f"Comma-separated: some of {', '.join(TARGETS)}.", metavar="NAME,...")
    ] = ",".join(TARGETS)
    merge: Annotated[
        bool,
        Option("With --lora: save the checkpoint with the updates added, beside the adapter."),
    ] = False
    experts: Annotated[
        ExpertFormat | None,
        Option("Format of the experts in the checkpoint.", default="as in --model"),
    ] = None

    steps: Annotated[
        int, Option("Batches to train on.", default="as many as --epochs take", minimum=0)
    ] = 0
    batch_size: Annotated[int, Option("Rows of packed conversations in a batch.", minimum=1)] = 8
    length: Annotated[
        int,
        Option(
            "Tokens in a row.", default=f"the model's context, at most {MOST_LENGTH}", minimum=0
        ),
    ] = 0
    learning_rate: float = 2e-5
    warmup: Annotated[int | None, _warmup(MOST_WARMUP)] = None
    weight_decay: float = 0.0
    balance: float = 0.0
    eval_every: int = 50
    save_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model", "data"):
            if not getattr(self, name):
                raise OssiaError(f"{flag(name)} is needed")
        if self.date and not _is_day(self.date):
            raise OssiaError(f"--date must be a day, YYYY-MM-DD, not {self.date}")
        if self.balance and not self.train_router:
            raise OssiaError("--balance needs --train-router")
        self._check_lora()

    def _check_lora(self) -> None:
        if not self.lora:
            for name in ("rank", "alpha", "lora_dropout", "targets", "merge"):
                if getattr(self, name) != getattr(FineTuneSettings, name):
                    raise OssiaError(f"{flag(name)} needs --lora")
            return
        if unknown := set(self.targets.split(",")).difference(TARGETS):
            raise OssiaError(
                f"--targets must be some of {', '.join(TARGETS)}, not {min(unknown)!r}"
            )
        if self.optimizer is Optimizer.MUON or self.expert_parallel:
            raise OssiaError("--lora goes with neither --optimizer muon nor --expert-parallel")
        if self.mxfp4_steps and "experts" not in self.targets:
            raise OssiaError("--mxfp4-steps needs experts among --targets")


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def derived_seed(seed: int, number: int) -> int:
    """The seed of a step or of a pass over the data: a stream of its own for each number."""
    return seed * 1_000_003 + number


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
