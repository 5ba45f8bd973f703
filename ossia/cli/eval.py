"""`ossia eval`: how good models are, at which effort, beside each other; and two runs compared."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.fields import Given, derived
from ossia.cli.help import Command, Group
from ossia.cli.options import open_llm
from ossia.cli.progress import progress
from ossia.cli.start import INTERRUPTED
from ossia.cli.stopping import until_interrupted
from ossia.cli.text import note, say, visible
from ossia.errors import OssiaError
from ossia.eval.options import EvalOptions
from ossia.options import EngineOptions, LoadOptions, SamplingOptions

if TYPE_CHECKING:
    from ossia.eval.runner import Progress
    from ossia.eval.session import Session

_FAILED = 1  # the exit code where questions are without an answer, or a run is worse

evaluate = typer.Typer(
    cls=Group,
    epilog="Example: ossia eval --limit 1",
    rich_markup_mode=None,
    invoke_without_command=True,
)


@evaluate.callback(epilog="Example: ossia eval --limit 1", invoke_without_command=True)
@derived
def run(
    *,
    context: typer.Context,
    options: Given[EvalOptions],
    sampling: Given[SamplingOptions],
    load: Given[LoadOptions],
    engine: Given[EngineOptions],
) -> None:
    """Ask models questions, and report how many they answer.

    The folder then holds report.html and results.json. Every reply is kept as it comes: after
    Ctrl-C or a crash the same command, or ossia eval --out FOLDER alone, goes on where it stopped.
    Endpoints read their key from OSSIA_EVAL_API_KEY; only api.openai.com, from OPENAI_API_KEY.
    """
    if context.invoked_subcommand is not None:
        return
    from ossia.eval.session import Session

    given, loading, running = options.build(), load.build(), engine.build()
    folder = given.out or Path(time.strftime("eval-%Y%m%d-%H%M%S"))
    session = Session(
        folder,
        given,
        sampling.build(),
        {**options.asked, **sampling.asked},
        lambda name: open_llm(name, loading, running),
    )
    try:
        found = _asked(session, folder)
        _report(session, given, folder)
    finally:
        session.store.close()
    if found.failed:
        note(f"{found.failed} failed, the last: {found.problem}; the same command asks again")
    if found.left_out:
        note(f"{found.left_out} are left, for ossia eval --out {folder}")
    if found.failed or found.left_out:
        raise typer.Exit(_FAILED)


def _asked(session: Session, folder: Path) -> Progress:
    """Ask what is left, under a progress bar."""
    before = session.progress
    with ExitStack() as stack:
        stopped = stack.enter_context(until_interrupted("after the questions that are asked"))
        shown = stack.enter_context(progress(before.total, "replies", before.done))

        def show(found: Progress) -> None:
            spent = f", ${found.spent:.4f}" if found.spent else ""
            failed = f", {found.failed} failed" if found.failed else ""
            shown.update(found.done, f"{found.accuracy:.1%} right{spent}{failed}")

        try:
            found = session.run(show, stopped)
        except KeyboardInterrupt:
            note(f"stopped at once; go on with: ossia eval --out {folder}")
            raise typer.Exit(INTERRUPTED) from None
    if stopped():
        note(f"stopped; go on with: ossia eval --out {folder}")
        raise typer.Exit(INTERRUPTED)
    return found


def _report(session: Session, options: EvalOptions, folder: Path) -> None:
    from ossia.eval import report, summary

    results = summary.summarize(session.store, options.training_text)
    page = report.write(results, folder)
    if options.json:
        print(json.dumps(results.to_json()))
        return
    say(summary.table(results))
    say(f"The whole report is in {page}")


@evaluate.command(epilog="Example: ossia eval compare before after", cls=Command)
def compare(
    one: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    other: Annotated[Path, typer.Argument(metavar="RUN", help="That of the run to judge.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two runs over the same questions: which turned, and whether that is more than noise.

    The exit code is 1 if the second run is worse by more than noise (p < 0.05), else 0. Where each
    run has one model they are compared whatever their names are; else models of the same name.
    """
    from ossia.eval import comparison

    found = comparison.compare_runs(one, other)
    if not found:
        raise OssiaError(f"{one} and {other} share no model, effort and question")
    if as_json:
        print(json.dumps([each.to_json() for each in found]))
    else:
        print(visible(comparison.text(found)))
    if any(each.is_worse for each in found):
        raise typer.Exit(_FAILED)
