"""`ossia ablate`: the ladder from GPT-2 to gpt-oss trained, measured and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.fields import Given, derived
from ossia.cli.options import set_threads
from ossia.cli.progress import progress
from ossia.cli.start import INTERRUPTED
from ossia.cli.stopping import until_interrupted
from ossia.cli.text import note, say
from ossia.ladder.plan import LadderMachine, Plan, ReportOptions
from ossia.system.processors import usable

if TYPE_CHECKING:
    from ossia.ladder.results import Measurements
    from ossia.ladder.run import Ablation, Planned
    from ossia.ladder.rungs import Rung
    from ossia.train.loop import StepReport


@derived
def ablate(
    *,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="A new folder, or that of a ladder."),
    ],
    plan: Given[Plan],
    shown: ReportOptions,
    machine: LadderMachine,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train each rung from GPT-2 to gpt-oss and report what it does.

    Each rung changes one choice of the model below it, and is trained with several seeds on the
    same text. The folder then holds report.html and results.json. Ctrl-C saves and stops; the same
    command, or ossia ablate --out FOLDER alone, continues.
    """
    from ossia.ladder import beside, report
    from ossia.ladder.summary import summarize

    # Before anything is trained.
    other = None if shown.beside is None else beside.read(Path(shown.beside))
    built = None if _begun(out) else Plan.at(plan.values["scale"], plan.asked)
    threads = machine.threads
    if built is not None and threads is None and machine.jobs is not None:
        threads = max(1, usable() // machine.jobs)
    set_threads(threads)
    ablation = _open(plan, built, out, machine.device)
    if machine.threads is None:
        set_threads(ablation.threads)
    again = f"continue with: ossia ablate --out {out}"
    try:
        if not _train(ablation, machine.jobs):
            note(f"stopped and saved; {again}")
            raise typer.Exit(INTERRUPTED)
    except KeyboardInterrupt:
        note(f"stopped at once; what was saved before stays; {again}")
        raise typer.Exit(INTERRUPTED) from None
    measured = _measured(ablation, shown.turns, again=shown.measure)
    results = summarize(ablation, measured, other)
    page = report.write(results, out)
    if as_json:
        print(json.dumps(results.to_json()))
        return
    for sentence in report.findings(results) + report.scales.sentences(results):
        say(sentence)
    say(f"The whole report is in {page}")


def _begun(out: Path) -> bool:
    return (out / "ladder.json").is_file()


def _open(plan: Given[Plan], new: Plan | None, out: Path, name: str) -> Ablation:
    """The ladder in the folder, or a new one; options that it did not begin with are refused."""
    from ossia.ladder.run import Ablation
    from ossia.train.device import choose

    if new is not None:
        device, remark = choose(name)
        if remark is not None:
            note(remark)
        return Ablation.start(new, out, device)
    asked = dict(plan.asked)
    seeds = asked.pop("seeds", None)
    ablation = Ablation(out)
    ablation.plan.refuse_changes(asked)
    if not (ablation.unfinished or seeds):
        return ablation  # nothing is computed, so no GPU is needed
    device, _ = choose(ablation.began_on if name == "auto" else name)
    return Ablation(out, seeds=seeds, device=device)


def _train(ablation: Ablation, jobs: int | None) -> bool:
    """Train what is not trained, under a progress bar; False if interrupted."""
    from ossia.ladder import jobs as several

    if not ablation.unfinished:
        return True
    if jobs is None:
        jobs = several.fitting(ablation)
    steps, total = ablation.plan.steps, len(ablation.runs)
    finished = (total - len(ablation.unfinished)) * steps
    made = {_name(run.rung, run.seed): ablation.steps_made(run) for run in ablation.unfinished}
    at_work: dict[str, StepReport] = {}
    most = 0  # runs at work at once so far
    done = finished + sum(made.values())

    with until_interrupted() as stopped, progress(total * steps, "steps", done) as shown:

        def report(rung: Rung, seed: int, step: StepReport) -> None:
            nonlocal most
            name = _name(rung, seed)
            made[name] = step.step
            at_work[name] = step
            if len(at_work) > most:
                most = len(at_work)
                shown.change_pace()
            rate = sum(one.tokens_per_second for one in at_work.values())
            names = [f"{name} {one.step / steps:.0%}" for name, one in at_work.items()]
            shown.update(finished + sum(made.values()), f"{', '.join(names)}, {rate:,.0f} tokens/s")
            if step.step == steps:
                del at_work[name]
                if step.evaluation is not None:
                    bits = step.evaluation["held_out_bits_per_byte"]
                    shown.say(f"{rung.title}, seed {seed}: held out {bits:.4f} bits per byte")

        def lost(run: Planned, line: str) -> None:
            at_work.pop(_name(run.rung, run.seed), None)
            shown.say(line)

        if jobs > 1:
            return several.train(ablation, jobs, report, lost, stopped)
        return ablation.train(report, stopped)


def _name(rung: Rung, seed: int) -> str:
    """A run's, beside the progress bar."""
    return f"{rung.name}-{seed}"


def _measured(ablation: Ablation, turns: int, *, again: bool) -> Measurements:
    """Speed and memory of every rung, under a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    from ossia.ladder.measure import measured

    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return measured(ablation, turns, again=again, progress=show)
