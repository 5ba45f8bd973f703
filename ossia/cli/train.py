"""`ossia train`: a model from text, as a Hugging Face checkpoint; stops and resumes at will."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ossia.cli.training import (
    AccumulateOption,
    BalanceOption,
    ClipOption,
    DecayOption,
    EvalEveryOption,
    ExpertParallelOption,
    FinalLearningRateOption,
    LearningRateOption,
    MXFP4StepsOption,
    OptimizerOption,
    OutOption,
    PrecisionOption,
    RecomputeOption,
    RecordOption,
    ResumeOption,
    SaveEveryOption,
    ScheduleOption,
    TensorBoardOption,
    WeightDecayOption,
    ZLossOption,
    follow,
    number,
)
from ossia.config import ExpertFormat
from ossia.train.settings import Optimizer, Precision, Schedule


def train(
    context: typer.Context,
    out: OutOption,
    resume: ResumeOption = False,
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="UTF-8 text or .jsonl file, a folder of them, or the word stdlib: this Python's "
            "library.",
        ),
    ] = "stdlib",
    config: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="small-gpt-oss, small-gpt2, small-qwen3, or a config.json of a family.",
        ),
    ] = "small-gpt-oss",
    vocab_size: Annotated[int, number("Ids of the vocabulary to learn.")] = 2048,
    steps: Annotated[int, number("Batches to train on.")] = 2000,
    batch_size: Annotated[int, number("Sequences in a batch.")] = 16,
    accumulate: AccumulateOption = 1,
    length: Annotated[int, number("Tokens in a sequence.")] = 256,
    long_length: Annotated[
        int,
        number("Tokens in a sequence of the last --long-steps, in batches of as many tokens."),
    ] = 0,
    long_steps: Annotated[int, number("Steps at the end with long sequences.")] = 0,
    optimizer: OptimizerOption = Optimizer.ADAMW,
    learning_rate: LearningRateOption = 2e-3,
    final_learning_rate: FinalLearningRateOption = 0.0,
    warmup: Annotated[
        int | None,
        number("Steps in which the learning rate rises. [default: a tenth of all, at most 100]"),
    ] = None,
    schedule: ScheduleOption = Schedule.COSINE,
    decay: DecayOption = 0,
    weight_decay: WeightDecayOption = 0.1,
    clip: ClipOption = 1.0,
    balance: BalanceOption = 0.01,
    z_loss: ZLossOption = 0.0,
    mxfp4_steps: MXFP4StepsOption = 0,
    experts: Annotated[
        ExpertFormat, typer.Option(help="How the checkpoint holds experts.")
    ] = ExpertFormat.MXFP4,
    seed: Annotated[int, number("Of weights, batches and dropout.")] = 0,
    dtype: PrecisionOption = Precision.FLOAT32,
    recompute: RecomputeOption = False,
    expert_parallel: ExpertParallelOption = False,
    eval_every: EvalEveryOption = 250,
    save_every: SaveEveryOption = 250,
    tensorboard: TensorBoardOption = None,
    as_json: RecordOption = False,
) -> None:
    """Train a model from a text.

    What comes out is a Hugging Face checkpoint. A part of the text is held out and its loss
    reported in bits per byte. Ctrl-C saves and stops; the same command with --resume continues, bit
    for bit on the same machine.
    """
    from ossia.train.runs.pretrain import Run
    from ossia.train.settings import Settings

    follow(Run, Settings, context, describe=_held_out, summary=_summary)


def _held_out(evaluation: dict[str, Any]) -> str:
    return f"held out {evaluation['held_out_bits_per_byte']:.3f} bits per byte, "


def _summary(record: dict[str, Any], out: Path) -> str:
    bits = record["held_out_bits_per_byte"]
    return (
        f"{out}: {record['parameters']['total']:,} parameters, {record['bytes'] / 1e6:.1f} MB, "
        f"held out {bits['as_saved']:.3f} bits per byte ({bits['as_trained']:.3f} before saving)"
    )
