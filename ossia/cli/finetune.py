"""`ossia finetune`: a checkpoint taught by conversations; stops and resumes at will."""

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
from ossia.train.settings import Optimizer, Precision, Schedule, TooLong


def finetune(
    context: typer.Context,
    out: OutOption,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="PATH_OR_HUB_NAME",
            help="Checkpoint folder, or a name on the Hugging Face hub.",
        ),
    ] = "",
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Conversations as JSON lines: messages, and maybe tools and reasoning_effort.",
        ),
    ] = "",
    resume: ResumeOption = False,
    eval_data: Annotated[
        str, typer.Option(metavar="FILE", help="Conversations held out, as --data.")
    ] = "",
    eval_share: Annotated[
        float, number("Held out of --data, where there is no --eval-data.", metavar="X")
    ] = 0.05,
    epochs: Annotated[float, number("Passes over the conversations.", metavar="X")] = 3.0,
    steps: Annotated[int, number("Batches to train on. [default: as many as --epochs make]")] = 0,
    batch_size: Annotated[int, number("Rows of packed conversations in a batch.")] = 8,
    accumulate: AccumulateOption = 1,
    length: Annotated[
        int, number("Tokens in a row. [default: the model's context, at most 2048]")
    ] = 0,
    too_long: Annotated[
        TooLong, typer.Option(help="What becomes of a conversation longer than a row.")
    ] = TooLong.ERROR,
    date: Annotated[
        str,
        typer.Option(
            metavar="YYYY-MM-DD",
            help="The day that prompts tell, where a conversation has none. [default: today]",
        ),
    ] = "",
    train_router: Annotated[
        bool, typer.Option("--train-router", help="Let routers of experts learn too.")
    ] = False,
    lora: Annotated[
        bool,
        typer.Option("--lora/--full", help="Learn low-rank updates of --targets, or every weight."),
    ] = False,
    rank: Annotated[int, number("Of the updates.")] = 16,
    alpha: Annotated[float, number("Updates are scaled by alpha / rank.", metavar="X")] = 32.0,
    lora_dropout: Annotated[float, number("Of what updates read.", metavar="P")] = 0.0,
    targets: Annotated[
        str, typer.Option(metavar="NAMES", help="Some of attention,mlp,experts.")
    ] = "attention,mlp,experts",
    optimizer: OptimizerOption = Optimizer.ADAMW,
    learning_rate: LearningRateOption = 2e-5,
    final_learning_rate: FinalLearningRateOption = 0.0,
    warmup: Annotated[
        int | None,
        number("Steps in which the learning rate rises. [default: a tenth of all, at most 10]"),
    ] = None,
    schedule: ScheduleOption = Schedule.COSINE,
    decay: DecayOption = 0,
    weight_decay: WeightDecayOption = 0.0,
    clip: ClipOption = 1.0,
    balance: BalanceOption = 0.0,
    z_loss: ZLossOption = 0.0,
    mxfp4_steps: MXFP4StepsOption = 0,
    experts: Annotated[
        ExpertFormat | None,
        typer.Option(help="How the checkpoint holds experts. [default: as --model has them]"),
    ] = None,
    seed: Annotated[int, number("Of batches, dropout and what is held out.")] = 0,
    dtype: PrecisionOption = Precision.FLOAT32,
    recompute: RecomputeOption = False,
    expert_parallel: ExpertParallelOption = False,
    eval_every: EvalEveryOption = 50,
    save_every: SaveEveryOption = 100,
    tensorboard: TensorBoardOption = None,
    as_json: RecordOption = False,
) -> None:
    """Fine-tune a model on conversations.

    The model learns to write each assistant's message after the prompt that inference would give
    it, and nothing else. Ctrl-C saves and stops; the same command with --resume continues, bit for
    bit on the same machine.
    """
    from ossia.train.runs.finetune import FineTuning
    from ossia.train.settings import FineTuneSettings

    follow(FineTuning, FineTuneSettings, context, describe=_held_out, summary=_summary)


def _held_out(evaluation: dict[str, Any]) -> str:
    loss = evaluation.get("held_out_loss")
    return "" if loss is None else f"held out {loss:.3f} nats per token, "


def _summary(record: dict[str, Any], out: Path) -> str:
    line = f"{out}: {record['parameters']['total']:,} parameters, {record['bytes'] / 1e6:.1f} MB"
    if "held_out_loss" not in record:
        return line
    loss = record["held_out_loss"]
    return (
        f"{line}, held out {loss['as_saved']:.3f} nats per token ({loss['before']:.3f} before "
        f"training, {loss['as_trained']:.3f} before saving)"
    )
