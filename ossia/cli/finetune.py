"""`ossia finetune`: a checkpoint taught by conversations; stops and resumes at will."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ossia.cli.training import Experts, Optimizer, Precision, Schedule, follow, number


class TooLong(StrEnum):
    error = "error"
    truncate = "truncate"
    skip = "skip"


def finetune(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where the checkpoint goes: a new folder, or with --resume that of the run.",
        ),
    ],
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
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out with the settings it began with."),
    ] = False,
    eval_data: Annotated[
        str, typer.Option(metavar="FILE", help="Conversations held out, as --data.")
    ] = "",
    eval_share: Annotated[
        float, number("Held out of --data, where there is no --eval-data.", metavar="X")
    ] = 0.05,
    epochs: Annotated[float, number("Passes over the conversations.", metavar="X")] = 3.0,
    steps: Annotated[int, number("Batches to train on. [default: as many as --epochs make]")] = 0,
    batch_size: Annotated[int, number("Rows of packed conversations in a batch.")] = 8,
    accumulate: Annotated[int, number("Parts of a batch, computed one after another.")] = 1,
    length: Annotated[
        int, number("Tokens in a row. [default: the model's context, at most 2048]")
    ] = 0,
    too_long: Annotated[
        TooLong, typer.Option(help="What becomes of a conversation longer than a row.")
    ] = TooLong.error,
    date: Annotated[
        str,
        typer.Option(
            metavar="YYYY-MM-DD", help="The day that prompts tell the model. [default: today]"
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
    optimizer: Annotated[
        Optimizer, typer.Option(help="muon is for hidden matrices, with AdamW for all else.")
    ] = Optimizer.adamw,
    learning_rate: Annotated[
        float,
        number("At its peak; falls to 0.", "--learning-rate", "--lr", metavar="X"),
    ] = 2e-5,
    warmup: Annotated[int, number("Steps in which the learning rate rises.")] = 10,
    schedule: Annotated[
        Schedule, typer.Option(help="Falls as a cosine, or stays until the last --decay steps.")
    ] = Schedule.cosine,
    decay: Annotated[int, number("Steps of wsd's fall; 0 is a fifth of all.")] = 0,
    weight_decay: Annotated[float, number("Of matrices only.", metavar="X")] = 0.0,
    clip: Annotated[float, number("Largest norm of the gradient.", metavar="X")] = 1.0,
    balance: Annotated[
        float, number("Weight of the experts' load-balancing loss.", metavar="X")
    ] = 0.0,
    z_loss: Annotated[float, number("Weight of the logits' squared log-sum.", metavar="X")] = 0.0,
    mxfp4_steps: Annotated[
        int, number("Steps at the end that see the experts rounded to MXFP4.")
    ] = 0,
    experts: Annotated[
        Experts | None,
        typer.Option(help="How the checkpoint holds experts. [default: as --model has them]"),
    ] = None,
    seed: Annotated[int, number("Of batches, dropout and what is held out.")] = 0,
    dtype: Annotated[
        Precision, typer.Option(help="Of matrix products; bfloat16 is autocast.")
    ] = Precision.float32,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Save memory: run layers again for the gradient.")
    ] = False,
    expert_parallel: Annotated[
        bool, typer.Option("--expert-parallel", help="Under torchrun: whole experts a process.")
    ] = False,
    eval_every: Annotated[int, number("Steps between held-out evaluations.")] = 50,
    save_every: Annotated[int, number("Steps between saved states.")] = 100,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write curves there (needs the tensorboard package)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Fine-tune a model on conversations.

    The model learns to write each assistant's message after the prompt that inference would give
    it, and nothing else. Ctrl-C saves and stops; the same command with --resume continues, bit for
    bit on the same machine.
    """
    from ossia.train.finetune import FineTuning
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
