"""`ossia train`: a model from text, as a Hugging Face checkpoint; stops and resumes at will."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.errors import OssiaError

if TYPE_CHECKING:
    from ossia.train.loop import Settings, StepReport
    from ossia.train.run import Run

_INTERRUPTED = 130


class Experts(StrEnum):
    mxfp4 = "mxfp4"
    dense = "dense"


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


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
            help="UTF-8 file, folder of them, or the word stdlib: this Python's library.",
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
    length: Annotated[int, _number("Tokens in a sequence.")] = 256,
    long_length: Annotated[
        int,
        _number("Tokens in a sequence of the last --long-steps, in batches of as many tokens."),
    ] = 0,
    long_steps: Annotated[int, _number("Steps at the end with long sequences.")] = 0,
    learning_rate: Annotated[
        float,
        _number("At its peak; falls to 0 as a cosine.", "--learning-rate", "--lr", metavar="X"),
    ] = 2e-3,
    warmup: Annotated[int, _number("Steps in which the learning rate rises.")] = 100,
    weight_decay: Annotated[float, _number("AdamW's, of matrices only.", metavar="X")] = 0.1,
    clip: Annotated[float, _number("Largest norm of the gradient.", metavar="X")] = 1.0,
    balance: Annotated[
        float, _number("Weight of the experts' load-balancing loss.", metavar="X")
    ] = 0.01,
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
    eval_every: Annotated[int, _number("Steps between held-out evaluations.")] = 250,
    save_every: Annotated[int, _number("Steps between saved states.")] = 250,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Train a model from a text.

    What comes out is a Hugging Face checkpoint. A part of the text is held out and its loss
    reported in bits per byte. Ctrl-C saves and stops; the same command with --resume continues, bit
    for bit on the same machine.
    """
    from ossia.train.loop import Settings
    from ossia.train.run import Run

    if resume:
        run = Run.resume(out)
        _refuse_changes(context, run.settings)
    else:
        settings = Settings(
            data=data,
            config=config,
            vocab_size=vocab_size,
            steps=steps,
            batch_size=batch_size,
            length=length,
            long_length=long_length,
            long_steps=long_steps,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            clip=clip,
            balance=balance,
            mxfp4_steps=mxfp4_steps,
            experts=experts.value,
            seed=seed,
            dtype=dtype.value,
            eval_every=eval_every,
            save_every=save_every,
        )
        run = Run.start(settings, out)
    if not _train(run):
        print(
            f"stopped and saved; continue with: ossia train --resume --out {out}", file=sys.stderr
        )
        raise typer.Exit(_INTERRUPTED)
    record = run.export()
    print(json.dumps(record) if as_json else _summary(record, out))


def _refuse_changes(context: typer.Context, settings: Settings) -> None:
    """Raise OssiaError for an option that is not what the run began with: it would do nothing."""
    for name, began in asdict(settings).items():
        source, given = context.get_parameter_source(name), context.params[name]
        if source is not None and source.name == "COMMANDLINE" and given != began:
            option = "--" + name.replace("_", "-")
            raise OssiaError(
                f"{option} {given}: the run began with {began}, and --resume keeps what it began "
                f"with; leave {option} out, or start anew"
            )


def _train(run: Run) -> bool:
    """Train under a progress bar, on stderr; the first Ctrl-C stops after the step it falls in."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
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
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console) as progress:
            done = run.trainer.progress.step
            task = progress.add_task(
                "", total=run.settings.steps, completed=done, loss=float("nan"), speed=0.0
            )

            def report(step: StepReport) -> None:
                progress.update(
                    task, completed=step.step, loss=step.loss, speed=step.tokens_per_second
                )
                if step.evaluation is not None:
                    bits = step.evaluation["held_out_bits_per_byte"]
                    progress.console.print(
                        f"step {step.step}: loss {step.loss:.3f}, held out {bits:.3f} bits per "
                        f"byte, {step.tokens_per_second:,.0f} tokens/s"
                    )

            return run.train(report, lambda: bool(interrupted))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _summary(record: dict[str, Any], out: Path) -> str:
    bits = record["held_out_bits_per_byte"]
    return (
        f"{out}: {record['parameters']['total']:,} parameters, {record['bytes'] / 1e6:.1f} MB, "
        f"held out {bits['as_saved']:.3f} bits per byte ({bits['as_trained']:.3f} before saving)"
    )
