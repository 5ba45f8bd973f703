"""What `ossia train` and `ossia finetune` share: starting or resuming a run, its progress bar, and
the record printed at its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.stopping import INTERRUPTED, USER_ERROR, until_interrupted
from ossia.errors import OssiaError
from ossia.train.settings import Optimizer, Precision, Schedule, option

if TYPE_CHECKING:
    from ossia.train.curves import Curves
    from ossia.train.loop import StepReport
    from ossia.train.runs.folder import FolderRun
    from ossia.train.settings import Training


def number(help: str, *names: str, metavar: str = "N") -> Any:
    """An option that is a number."""
    # What stands for "it depends" is no default to show.
    shown = "[default:" not in help
    return typer.Option(*names, metavar=metavar, help=help, show_default=shown)


# The options of the same name of both commands; each has its own default.
OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="FOLDER",
        help="Where the checkpoint goes: a new folder, or with --resume that of the run.",
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run in --out with the settings it began with."),
]
AccumulateOption = Annotated[int, number("Parts of a batch, computed one after another.")]
OptimizerOption = Annotated[
    Optimizer, typer.Option(help="muon is for hidden matrices, with AdamW for all else.")
]
LearningRateOption = Annotated[
    float, number("At its peak.", "--learning-rate", "--lr", metavar="X")
]
FinalLearningRateOption = Annotated[
    float, number("What it falls to.", "--final-learning-rate", "--final-lr", metavar="X")
]
ScheduleOption = Annotated[
    Schedule, typer.Option(help="Falls as a cosine, or stays until the last --decay steps.")
]
DecayOption = Annotated[int, number("Steps of wsd's fall; 0 is a fifth of all.")]
WeightDecayOption = Annotated[float, number("Of matrices only.", metavar="X")]
ClipOption = Annotated[float, number("Largest norm of the gradient.", metavar="X")]
BalanceOption = Annotated[float, number("Weight of the experts' load-balancing loss.", metavar="X")]
ZLossOption = Annotated[float, number("Weight of the logits' squared log-sum.", metavar="X")]
MXFP4StepsOption = Annotated[int, number("Steps at the end that see the experts rounded to MXFP4.")]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Of matrix products; bfloat16 is autocast.")
]
RecomputeOption = Annotated[
    bool, typer.Option("--recompute", help="Save memory: run layers again for the gradient.")
]
ExpertParallelOption = Annotated[
    bool, typer.Option("--expert-parallel", help="Under torchrun: whole experts a process.")
]
EvalEveryOption = Annotated[int, number("Steps between held-out evaluations.")]
SaveEveryOption = Annotated[int, number("Steps between saved states.")]
TensorBoardOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Write curves there (needs the tensorboard package)."),
]
RecordOption = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]


def follow(
    run_type: type[FolderRun],
    settings_type: type[Training],
    context: typer.Context,
    *,
    describe: Callable[[dict[str, Any]], str],
    summary: Callable[[dict[str, Any], Any], str],
) -> None:
    """Start or resume the run that the command's options describe, train and export it.

    `describe` says what an evaluation found, `summary` is the last line. Ctrl-C saves and the exit
    code is 130.
    """
    from ossia.train import parallel
    from ossia.train.curves import Curves

    options = context.params
    out, tensorboard = options["out"], options["tensorboard"]
    parallel.join()
    try:
        curves = Curves(tensorboard) if tensorboard and parallel.rank() == 0 else None
        if options["resume"]:
            run = run_type.resume(out)
            refuse_changes(context, run.settings)
        else:
            with _console().status("reading the data"):
                run = run_type.start(settings_type(**_given(context, settings_type)), out)
        if not _train(run, curves, describe):
            again = f"ossia {run.COMMAND} --resume --out {out}"
            print(f"stopped and saved; continue with: {again}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED)
        record = run.export()
        if record:
            print(json.dumps(record) if options["as_json"] else summary(record, out))
    except parallel.FirstFailed as said:
        raise typer.Exit(USER_ERROR) from said
    finally:
        parallel.leave()


def _given(context: typer.Context, settings_type: type[Training]) -> dict[str, Any]:
    """The value of each setting, which all are options of the same name."""
    values = {field.name: context.params[field.name] for field in fields(settings_type)}
    return {
        name: value.value if isinstance(value, StrEnum) else value
        for name, value in values.items()
        if value is not None
    }


def refuse_changes(context: typer.Context, settings: Any) -> None:
    """Raise OssiaError for an option that is not what the run began with: it would do nothing."""
    for name, began in asdict(settings).items():
        source, given = context.get_parameter_source(name), context.params[name]
        if source is not None and source.name == "COMMANDLINE" and given != began:
            raise OssiaError(
                f"{option(name)} {given}: the run began with {began}, and goes on with what it "
                f"began with; leave {option(name)} out, or start anew"
            )


def _console() -> Any:
    from rich.console import Console

    from ossia.train import parallel

    return Console(stderr=True, highlight=False, quiet=parallel.rank() != 0)


def _train(
    run: FolderRun, curves: Curves | None, describe: Callable[[dict[str, Any]], str]
) -> bool:
    """Train under a progress bar, on stderr; the first Ctrl-C stops after the step it falls in."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = _console()
    for note in run.notes:
        console.print(note, soft_wrap=True)
    utilization = run.utilization()
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    try:
        with until_interrupted() as stopped, Progress(*columns, console=console) as progress:
            done, nan = run.trainer.progress.step, float("nan")
            task = progress.add_task(
                "", total=run.settings.steps, completed=done, loss=nan, speed=""
            )

            def report(step: StepReport) -> None:
                speed = f"{step.tokens_per_second:,.0f} tokens/s"
                if utilization is not None:
                    speed += f", {utilization.of(step):.0%} MFU"
                progress.update(task, completed=step.step, loss=step.loss, speed=speed)
                if curves is not None:
                    curves.add(step)
                if step.evaluation is not None:
                    found = f"loss {step.loss:.3f}, {describe(step.evaluation)}{speed}"
                    progress.console.print(f"step {step.step}: {found}")

            return run.train(report, stopped)
    finally:
        if curves is not None:
            curves.close()
