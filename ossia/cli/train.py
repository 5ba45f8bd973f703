"""`ossia train`: a model from text, as a Hugging Face checkpoint; stops and resumes at will."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ossia.cli.training import Experts, Optimizer, Precision, Schedule, follow, number


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
    vocab_size: Annotated[int, number("Ids of the vocabulary to learn.")] = 2048,
    steps: Annotated[int, number("Batches to train on.")] = 2000,
    batch_size: Annotated[int, number("Sequences in a batch.")] = 16,
    accumulate: Annotated[int, number("Parts of a batch, computed one after another.")] = 1,
    length: Annotated[int, number("Tokens in a sequence.")] = 256,
    long_length: Annotated[
        int,
        number("Tokens in a sequence of the last --long-steps, in batches of as many tokens."),
    ] = 0,
    long_steps: Annotated[int, number("Steps at the end with long sequences.")] = 0,
    optimizer: Annotated[
        Optimizer, typer.Option(help="muon is for hidden matrices, with AdamW for all else.")
    ] = Optimizer.adamw,
    learning_rate: Annotated[
        float,
        number("At its peak; falls to 0.", "--learning-rate", "--lr", metavar="X"),
    ] = 2e-3,
    warmup: Annotated[int, number("Steps in which the learning rate rises.")] = 100,
    schedule: Annotated[
        Schedule, typer.Option(help="Falls as a cosine, or stays until the last --decay steps.")
    ] = Schedule.cosine,
    decay: Annotated[int, number("Steps of wsd's fall; 0 is a fifth of all.")] = 0,
    weight_decay: Annotated[float, number("Of matrices only.", metavar="X")] = 0.1,
    clip: Annotated[float, number("Largest norm of the gradient.", metavar="X")] = 1.0,
    balance: Annotated[
        float, number("Weight of the experts' load-balancing loss.", metavar="X")
    ] = 0.01,
    z_loss: Annotated[float, number("Weight of the logits' squared log-sum.", metavar="X")] = 0.0,
    mxfp4_steps: Annotated[
        int, number("Steps at the end that see the experts rounded to MXFP4.")
    ] = 0,
    experts: Annotated[
        Experts, typer.Option(help="How the checkpoint holds experts.")
    ] = Experts.mxfp4,
    seed: Annotated[int, number("Of weights, batches and dropout.")] = 0,
    dtype: Annotated[
        Precision, typer.Option(help="Of matrix products; bfloat16 is autocast.")
    ] = Precision.float32,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Save memory: run layers again for the gradient.")
    ] = False,
    expert_parallel: Annotated[
        bool, typer.Option("--expert-parallel", help="Under torchrun: whole experts a process.")
    ] = False,
    eval_every: Annotated[int, number("Steps between held-out evaluations.")] = 250,
    save_every: Annotated[int, number("Steps between saved states.")] = 250,
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
    from ossia.train.run import Run
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
