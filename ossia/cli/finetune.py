"""`ossia finetune`: train a checkpoint on conversations."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ossia.cli.fields import Given, derived
from ossia.cli.training import RunOptions, Words, follow
from ossia.train.settings import FineTuneSettings


@derived
def finetune(options: RunOptions, settings: Given[FineTuneSettings]) -> None:
    """Fine-tune a model on conversations.

    The model learns to write each assistant message after the prompt that precedes it at inference;
    nothing else is learned. Ctrl-C saves the run and stops; the same command with --resume
    continues it, bit for bit on the same machine.
    """
    from ossia.train.runs.finetune import FineTuning

    follow(FineTuning, settings, options, Words(_held_out, _summary))


def _held_out(evaluation: dict[str, Any]) -> str:
    loss = evaluation.get("held_out_loss")
    return "" if loss is None else f"held out {loss:.3f} nats per token, "


def _summary(record: dict[str, Any], out: Path) -> str:
    saved, counts = record["saved"], record["parameters"]
    if saved["checkpoint"]:
        line = f"{out}: {counts['total']:,} parameters, {record['bytes'] / 1e6:.1f} MB"
    else:
        size = saved["adapter_bytes"] / 1e6
        line = f"{out / 'adapter'}: an adapter of {counts['trained']:,} parameters, {size:.1f} MB"
    if "held_out_loss" in record:
        loss = record["held_out_loss"]
        line += (
            f", held out {loss['as_saved']:.3f} nats per token ({loss['before']:.3f} before "
            f"training, {loss['as_trained']:.3f} before saving)"
        )
    if saved["checkpoint"]:
        return line
    merge = ["ossia", "merge", record["model"]["name"], str(out / "adapter"), "FOLDER"]
    return f"{line}\nadd it to the model in a new folder with: {shlex.join(merge)}"
