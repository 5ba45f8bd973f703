"""`ossia train`: train a model from a text and save it as a Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ossia.cli.fields import Given, derived
from ossia.cli.training import RunOptions, Words, follow
from ossia.train.settings import Settings


@derived
def train(options: RunOptions, settings: Given[Settings]) -> None:
    """Train a model from a text.

    The result is a Hugging Face checkpoint. Part of the text is held out, and its loss is reported
    in bits per byte. Ctrl-C saves the run and stops; the same command with --resume continues it,
    bit for bit on the same machine.
    """
    from ossia.train.runs.pretrain import Run

    follow(Run, settings, options, Words(_held_out, _summary))


def _held_out(evaluation: dict[str, Any]) -> str:
    return f"held out {evaluation['held_out_bits_per_byte']:.3f} bits per byte, "


def _summary(record: dict[str, Any], out: Path) -> str:
    bits = record["held_out_bits_per_byte"]
    return (
        f"{out}: {record['parameters']['total']:,} parameters, {record['bytes'] / 1e6:.1f} MB, "
        f"held out {bits['as_saved']:.3f} bits per byte ({bits['as_trained']:.3f} before saving)"
    )
