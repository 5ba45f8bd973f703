"""`ossia quantize` and `ossia merge`: a checkpoint made from another without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ossia.config import ExpertFormat

_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Checkpoint folder, or a name on the Hugging Face hub.",
        show_default=False,
    ),
]
_Out = Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]


def quantize(
    model: _Model,
    out: _Out,
    data: Annotated[
        str,
        typer.Option(metavar="FILE", help="Text, or .jsonl conversations, to compare the loss on."),
    ] = "",
    as_json: _Json = False,
) -> None:
    """Pack a checkpoint's experts into MXFP4.

    Prints how far packing moves each layer's experts, over their size, and with --data the loss
    before and after.
    """
    from ossia.adapt import convert

    with _spinner(f"packing the experts of {model}"):
        record = convert.quantize(model, out, data)
    print(json.dumps(record) if as_json else "\n".join([*_lines(record), f"saved to {out}"]))


def merge(
    model: _Model,
    adapter: Annotated[
        Path,
        typer.Argument(metavar="ADAPTER", help="A LoRA adapter of peft's.", show_default=False),
    ],
    out: _Out,
    experts: Annotated[
        ExpertFormat | None,
        typer.Option(help="How the checkpoint holds experts. [default: as MODEL has them]"),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Add a LoRA adapter to a checkpoint, experts in MXFP4 too."""
    from ossia.adapt import convert

    with _spinner(f"adding {adapter} to {model}"):
        record = convert.merge(model, adapter, out, experts.value if experts else "")
    print(json.dumps(record) if as_json else "\n".join([*_lines(record), f"saved to {out}"]))


def _lines(record: dict[str, Any]) -> list[str]:
    lines = [f"{error:7.2%}  {name}" for name, error in record["quantization_error"].items()]
    if lines:
        lines.insert(0, "relative error of packing, root mean square:")
    if loss := record.get("held_out_loss"):
        before, after = loss["before"], loss["after"]
        lines.append(f"held out: {before:.4f} {loss['unit']} before, {after:.4f} after")
    return lines


def _spinner(message: str) -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False).status(message)
