"""`ossia quantize` and `ossia merge`: a checkpoint made from another without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.options import IgnoreUnknownOption
from ossia.cli.text import say
from ossia.config import ExpertFormat

if TYPE_CHECKING:
    from ossia.adapt.convert import Conversion

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
        str | None,
        typer.Option(
            metavar="FILE",
            help="Measure the loss on this file before and after: text, or conversations (.jsonl).",
        ),
    ] = None,
    ignore_unknown_keys: IgnoreUnknownOption = False,
    as_json: _Json = False,
) -> None:
    """Pack a checkpoint's experts into MXFP4.

    Prints the relative error of each layer's experts, and with --data the loss before and after.
    """
    from ossia.adapt import convert
    from ossia.train.held_out import loss_on

    with _spinner(f"packing the experts of {model}"):
        loss = loss_on(data, model, ignore_unknown_keys) if data else None
        record = convert.quantize(model, out, loss, ignore_unknown_keys=ignore_unknown_keys)
    _print(record, out, as_json=as_json)


def merge(
    model: _Model,
    adapter: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER", help="A LoRA adapter in peft's format.", show_default=False
        ),
    ],
    out: _Out,
    experts: Annotated[
        ExpertFormat | None,
        typer.Option(help="Format of the experts in the checkpoint. [default: as in MODEL]"),
    ] = None,
    ignore_unknown_keys: IgnoreUnknownOption = False,
    as_json: _Json = False,
) -> None:
    """Merge a LoRA adapter into a checkpoint.

    Experts in MXFP4 are unpacked, changed and packed again.
    """
    from ossia.adapt import convert

    with _spinner(f"adding {adapter} to {model}"):
        record = convert.merge(
            model, adapter, out, experts, ignore_unknown_keys=ignore_unknown_keys
        )
    _print(record, out, as_json=as_json)


def _print(record: Conversion, out: Path, *, as_json: bool) -> None:
    if as_json:
        from ossia.system.records import to_json

        print(json.dumps(to_json(record)))
        return
    if record.quantization_error:
        say("relative error of packing, root mean square:")
    for name, error in record.quantization_error.items():
        say(f"{error:7.2%}  {name}")
    if change := record.held_out_loss:
        say(f"held out: {change.before:.4f} {change.unit} before, {change.after:.4f} after")
    say(f"saved to {out}")


def _spinner(message: str) -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False).status(message)
