"""What `ossia train` and `ossia finetune` share: starting or resuming a run, its progress bar, and
the record printed at its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.fields import Given
from ossia.cli.stopping import INTERRUPTED, USER_ERROR, until_interrupted
from ossia.options import Option, Options

if TYPE_CHECKING:
    from ossia.train.curves import Curves
    from ossia.train.loop import StepReport
    from ossia.train.runs.folder import FolderRun


@dataclass(frozen=True)
class RunOptions(Options):
    """What a command does with a run; its settings decide what is computed."""

    out: Annotated[
        Path,
        Option(
            "Folder of the checkpoint: a new one, or with --resume that of the run.",
            metavar="FOLDER",
            names=("-o",),
        ),
    ]
    resume: Annotated[
        bool, Option("Continue the run in --out with the settings that it began with.")
    ] = False
    tensorboard: Annotated[
        Path | None,
        Option("Write curves to this folder (needs the tensorboard package).", metavar="FOLDER"),
    ] = None
    json: Annotated[bool, Option("Print the record as JSON.")] = False


def follow(
    run_type: type[FolderRun],
    settings: Given[Any],
    options: RunOptions,
    *,
    describe: Callable[[dict[str, Any]], str],
    summary: Callable[[dict[str, Any], Path], str],
) -> None:
    """Start or resume a run, train and export it.

    `describe` puts an evaluation into words, `summary` the record. Ctrl-C saves, and the exit code
    is 130.
    """
    from ossia.train import parallel
    from ossia.train.curves import Curves

    parallel.join()
    try:
        folder = options.tensorboard if parallel.rank() == 0 else None
        curves = Curves(folder) if folder is not None else None
        if options.resume:
            run = run_type.resume(options.out, settings.asked)
        else:
            with _console().status("reading the data"):
                run = run_type.start(settings.build(), options.out)
        if not _train(run, curves, describe):
            again = f"ossia {run.COMMAND} --resume --out {options.out}"
            print(f"stopped and saved; continue with: {again}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED)
        record = run.export()
        if record:
            print(json.dumps(record) if options.json else summary(record, options.out))
    except parallel.FirstFailed as failure:
        raise typer.Exit(USER_ERROR) from failure
    finally:
        parallel.leave()


def _console() -> Any:
    from rich.console import Console

    from ossia.train import parallel

    return Console(stderr=True, highlight=False, quiet=parallel.rank() != 0)


def _train(
    run: FolderRun, curves: Curves | None, describe: Callable[[dict[str, Any]], str]
) -> bool:
    """Train under a progress bar on stderr; the first Ctrl-C stops after the current step."""
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
