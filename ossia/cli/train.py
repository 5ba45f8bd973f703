"""`ossia train`: a model from text, as a Hugging Face checkpoint; stops and resumes at will."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.errors import OssiaError

if TYPE_CHECKING:
    from ossia.train.curves import Curves
    from ossia.train.loop import StepReport
    from ossia.train.run import Run
    from ossia.train.settings import Settings

_INTERRUPTED = 130


class Experts(StrEnum):
    mxfp4 = "mxfp4"
    dense = "dense"


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Schedule(StrEnum):
    cosine = "cosine"
    wsd = "wsd"


class Optimizer(StrEnum):
    adamw = "adamw"
    muon = "muon"


def _number(help: str, *names: str, metavar: str = "N") -> Any:
    return typer.Option(*names, metavar=metavar, help=help)


def train(
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
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out with the settings it began with."),
    ] = False,
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
    vocab_size: Annotated[int, _number("Ids of the vocabulary to learn.")] = 2048,
    steps: Annotated[int, _number("Batches to train on.")] = 2000,
    batch_size: Annotated[int, _number("Sequences in a batch.")] = 16,
    accumulate: Annotated[int, _number("Parts of a batch, computed one after another.")] = 1,
    length: Annotated[int, _number("Tokens in a sequence.")] = 256,
    long_length: Annotated[
        int,
        _number("Tokens in a sequence of the last --long-steps, in batches of as many tokens."),
    ] = 0,
    long_steps: Annotated[int, _number("Steps at the end with long sequences.")] = 0,
    optimizer: Annotated[
        Optimizer, typer.Option(help="muon is for hidden matrices, with AdamW for all else.")
    ] = Optimizer.adamw,
    learning_rate: Annotated[
        float,
        _number("At its peak; falls to 0.", "--learning-rate", "--lr", metavar="X"),
    ] = 2e-3,
    warmup: Annotated[int, _number("Steps in which the learning rate rises.")] = 100,
    schedule: Annotated[
        Schedule, typer.Option(help="Falls as a cosine, or stays until the last --decay steps.")
    ] = Schedule.cosine,
    decay: Annotated[int, _number("Steps of wsd's fall; 0 is a fifth of all.")] = 0,
    weight_decay: Annotated[float, _number("Of matrices only.", metavar="X")] = 0.1,
    clip: Annotated[float, _number("Largest norm of the gradient.", metavar="X")] = 1.0,
    balance: Annotated[
        float, _number("Weight of the experts' load-balancing loss.", metavar="X")
    ] = 0.01,
    z_loss: Annotated[float, _number("Weight of the logits' squared log-sum.", metavar="X")] = 0.0,
    mxfp4_steps: Annotated[
        int, _number("Steps at the end that see the experts rounded to MXFP4.")
    ] = 0,
    experts: Annotated[
        Experts, typer.Option(help="How the checkpoint holds experts.")
    ] = Experts.mxfp4,
    seed: Annotated[int, _number("Of weights, batches and dropout.")] = 0,
    dtype: Annotated[
        Precision, typer.Option(help="Of matrix products; bfloat16 is autocast.")
    ] = Precision.float32,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Save memory: run layers again for the gradient.")
    ] = False,
    expert_parallel: Annotated[
        bool, typer.Option("--expert-parallel", help="Under torchrun: whole experts a process.")
    ] = False,
    eval_every: Annotated[int, _number("Steps between held-out evaluations.")] = 250,
    save_every: Annotated[int, _number("Steps between saved states.")] = 250,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write curves there (needs the tensorboard package)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Train a model from a text.

    What comes out is a Hugging Face checkpoint. A part of the text is held out and its loss
    reported in bits per byte. Ctrl-C saves and stops; the same command with --resume continues, bit
    for bit on the same machine.
    """
    from ossia.train import parallel
    from ossia.train.curves import Curves
    from ossia.train.run import Run
    from ossia.train.settings import Settings

    parallel.join()
    try:
        curves = Curves(tensorboard) if tensorboard and parallel.rank() == 0 else None
        if resume:
            run = Run.resume(out)
            _refuse_changes(context, run.settings)
        else:
            run = Run.start(Settings(**_given(context)), out)
        if not _train(run, curves):
            print(
                f"stopped and saved; continue with: ossia train --resume --out {out}",
                file=sys.stderr,
            )
            raise typer.Exit(_INTERRUPTED)
        record = run.export()
        if record:
            print(json.dumps(record) if as_json else _summary(record, out))
    finally:
        parallel.leave()


def _given(context: typer.Context) -> dict[str, Any]:
    """The value of each setting, which all are options of the same name."""
    from ossia.train.settings import Settings

    values = {field.name: context.params[field.name] for field in fields(Settings)}
    return {k: v.value if isinstance(v, StrEnum) else v for k, v in values.items()}


def _refuse_changes(context: typer.Context, settings: Settings) -> None:
    """Raise OssiaError for an option that is not what the run began with: it would do nothing."""
    from ossia.train.settings import option

    for name, began in asdict(settings).items():
        source, given = context.get_parameter_source(name), context.params[name]
        if source is not None and source.name == "COMMANDLINE" and given != began:
            raise OssiaError(
                f"{option(name)} {given}: the run began with {began}, and --resume keeps what it "
                f"began with; leave {option(name)} out, or start anew"
            )


def _train(run: Run, curves: Curves | None) -> bool:
    """Train under a progress bar, on stderr; the first Ctrl-C stops after the step it falls in."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ossia.train import parallel
    from ossia.train.utilization import Utilization

    console = Console(stderr=True, highlight=False, quiet=parallel.rank() != 0)
    utilization = Utilization(run.config, run.settings)
    interrupted = []
    previous = {}

    def stop(number: int, frame: Any) -> None:
        interrupted.append(number)
        signal.signal(number, previous[number])  # a second one does not wait

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, stop)
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TextColumn("{task.fields[mfu]:.0%} MFU"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console) as progress:
            done, nan = run.trainer.progress.step, float("nan")
            task = progress.add_task(
                "", total=run.settings.steps, completed=done, loss=nan, speed=0.0, mfu=0.0
            )

            def report(step: StepReport) -> None:
                speed = step.tokens_per_second
                mfu = utilization.of(step)
                progress.update(task, completed=step.step, loss=step.loss, speed=speed, mfu=mfu)
                if curves is not None:
                    curves.add(step)
                if step.evaluation is not None:
                    bits = step.evaluation["held_out_bits_per_byte"]
                    progress.console.print(
                        f"step {step.step}: loss {step.loss:.3f}, held out {bits:.3f} bits per "
                        f"byte, {speed:,.0f} tokens/s, {mfu:.0%} MFU"
                    )

            return run.train(report, lambda: bool(interrupted))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if curves is not None:
            curves.close()


def _summary(record: dict[str, Any], out: Path) -> str:
    bits = record["held_out_bits_per_byte"]
    return (
        f"{out}: {record['parameters']['total']:,} parameters, {record['bytes'] / 1e6:.1f} MB, "
        f"held out {bits['as_saved']:.3f} bits per byte ({bits['as_trained']:.3f} before saving)"
    )
