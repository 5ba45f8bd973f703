"""What `ossia train` and `ossia finetune` share: starting or resuming a run, its progress, and the
record printed at its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.fields import Given
from ossia.cli.progress import Progress, Silent, progress
from ossia.cli.start import INTERRUPTED
from ossia.cli.stopping import USER_ERROR, until_interrupted
from ossia.cli.text import note, say
from ossia.options import MOST_THREADS, Option, TrainingMachineOptions

if TYPE_CHECKING:
    from ossia.train.curves import Curves
    from ossia.train.loop import StepReport
    from ossia.train.runs.folder import FolderRun


@dataclass(frozen=True, kw_only=True)
class RunOptions(TrainingMachineOptions):
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
    threads: Annotated[
        int | None,
        Option(
            "CPU threads to compute with.",
            minimum=1,
            maximum=MOST_THREADS,
            default="one or all, whichever is measured to be faster",
        ),
    ] = None
    compile: Annotated[
        bool | None,
        Option(
            "Compile the layers first, which takes a minute and makes a GPU faster.",
            default="on a GPU",
        ),
    ] = None
    json: Annotated[bool, Option("Print the record as JSON.")] = False


@dataclass(frozen=True)
class Words:
    """How a command puts its figures: an evaluation, and the record with the run's folder."""

    evaluation: Callable[[dict[str, Any]], str]
    record: Callable[[dict[str, Any], Path], str]


def follow(
    run_type: type[FolderRun], settings: Given[Any], options: RunOptions, words: Words
) -> None:
    """Start or resume a run, train and export it. Ctrl-C saves, and the exit code is 130."""
    built = None if options.resume else settings.build()  # before torch is imported
    from ossia.train import parallel
    from ossia.train.curves import Curves
    from ossia.train.device import choose
    from ossia.train.runs.folder import last_device

    name = options.device
    if options.resume and name == "auto":
        name = last_device(options.out)
    device, remark = choose(name)
    parallel.join(device)
    if remark is not None:
        _print(remark)
    try:
        folder = options.tensorboard if parallel.rank() == 0 else None
        curves = Curves(folder) if folder is not None else None
        if built is None:
            run = run_type.resume(options.out, settings.asked, device)
        else:
            with _console().status("reading the data"):
                run = run_type.start(built, options.out, device)
        _complete(run, curves, options, words)
    except parallel.FirstFailed as failure:
        raise typer.Exit(USER_ERROR) from failure
    finally:
        parallel.leave()


def _complete(run: FolderRun, curves: Curves | None, options: RunOptions, words: Words) -> None:
    """Train the run, then export it. However it is stopped, say what is saved."""
    again = f"continue with: ossia {run.COMMAND} --resume --out {options.out}"
    try:
        run.use_threads(options.threads)
        run.choose_precision()
        if run.wants_compiler(options.compile):
            with _console().status("compiling the layers"):
                run.compile()
        if not _train(run, curves, words.evaluation):
            _print(f"stopped and saved after step {run.trainer.progress.step}; {again}")
            raise typer.Exit(INTERRUPTED)
        record = run.export()
    except KeyboardInterrupt:
        done, saved = run.trainer.progress.step, run.trainer.saved_step
        where = "before the checkpoint" if done == run.settings.steps else f"in step {done + 1}"
        state = "nothing is saved" if saved is None else f"saved is the state after step {saved}"
        _print(f"stopped at once, {where}; {state}; {again}")
        raise typer.Exit(INTERRUPTED) from None
    if record and options.json:
        print(json.dumps(record))
    elif record:
        say(words.record(record, options.out))


def _print(line: str) -> None:
    from ossia.train import parallel

    if parallel.rank() == 0:
        note(line)


def _console() -> Any:
    from rich.console import Console

    from ossia.train import parallel

    return Console(stderr=True, highlight=False, quiet=parallel.rank() != 0)


def _train(
    run: FolderRun, curves: Curves | None, describe: Callable[[dict[str, Any]], str]
) -> bool:
    """Train and show the progress; the first Ctrl-C stops after the current step."""
    for line in run.notes:
        _print(line)
    utilization = run.utilization()
    steps, done = run.settings.steps, run.trainer.progress.step
    try:
        with until_interrupted() as stopped, _progress(steps, done) as shown:

            def report(step: StepReport) -> None:
                speed = f"{step.tokens_per_second:,.0f} tokens/s"
                if utilization is not None:
                    speed += f", {utilization.of(step):.0%} MFU"
                shown.update(step.step, f"loss {step.loss:.3f}, {speed}")
                if curves is not None:
                    curves.add(step)
                if step.evaluation is not None:
                    found = f"loss {step.loss:.3f}, {describe(step.evaluation)}{speed}"
                    shown.say(f"step {step.step}: {found}")

            return run.train(report, stopped)
    finally:
        if curves is not None:
            curves.close()


def _progress(steps: int, done: int) -> AbstractContextManager[Progress]:
    """Only the first of several processes shows it."""
    from ossia.train import parallel

    return progress(steps, "steps", done) if parallel.rank() == 0 else nullcontext(Silent())
