"""`ossia inspect`: what a model is, what it costs, and where each tensor of its checkpoint goes."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.options import IgnoreUnknownOption
from ossia.cli.text import table
from ossia.errors import OssiaError

if TYPE_CHECKING:
    from ossia.config import ModelConfig
    from ossia.insight.describe import Subject


def inspect(
    path_or_name: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_NAME",
            help="A preset (gpt2, qwen3-0.6b, gpt-oss-20b, ...), checkpoint folder or hub name.",
        ),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Also list where each tensor on disk goes.")
    ] = False,
    ignore_unknown_keys: IgnoreUnknownOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe a model: layers, parameters, bytes, tensors.

    A preset needs no weights. Of a checkpoint the config and the headers of its files are read, and
    of a hub model that is not cached no more is downloaded.
    """
    from ossia.families import preset
    from ossia.insight.describe import described, record

    if (config := preset(path_or_name)) is not None:
        subject = _preset(path_or_name.lower(), config, tensors)
    else:
        subject = _checkpoint(path_or_name, tensors, ignore_unknown_keys)
    if as_json:
        print(json.dumps(record(subject), ensure_ascii=False))
        return
    print(table(described(subject), sys.stdout))
    if tensors:
        _print_tensors(subject)


def _print_tensors(subject: Subject) -> None:
    print("\ntensors: on disk -> in the model, shape on disk")
    left = max(len(move.theirs) for move in subject.moves)
    right = max(len(move.ours) for move in subject.moves)
    for move in subject.moves:
        print(f"  {move.theirs:<{left}} -> {move.ours:<{right}}  {move.kind}")
    for name in subject.ignored:
        print(f"  {name}  ignored")


def _preset(name: str, config: ModelConfig, tensors: bool) -> Subject:
    from ossia.checkpoint.regions import stored_shapes
    from ossia.families import layouts
    from ossia.insight import counts
    from ossia.insight.describe import Subject
    from ossia.insight.moves import fold, shape_text

    title = f"{name} (preset)"
    if not tensors:
        return Subject(title, config)
    rows = layouts(config)[0].rows
    shapes = stored_shapes(rows, {tensor.name: tensor.shape for tensor in counts.tensors(config)})
    kinds = {name: shape_text(shape) for name, shape in shapes.items()}
    return Subject(title, config, moves=tuple(fold(rows, kinds)))


def _checkpoint(name: str, tensors: bool, ignore_unknown_keys: bool) -> Subject:
    from ossia.checkpoint import headers, is_packaged
    from ossia.checkpoint.contents import read_contents
    from ossia.families import PRESETS
    from ossia.insight.describe import Subject
    from ossia.insight.moves import fold, shape_text

    here = os.path.exists(os.path.expanduser(name)) or is_packaged(name)
    if not (here or "/" in name):
        raise OssiaError(
            f"{name} is neither a checkpoint folder nor a preset; "
            f"the presets are {', '.join(PRESETS)}"
        )
    with headers(name) as folder:
        contents = read_contents(folder, ignore_unknown_keys)
        contents.check(contents.empty())
        file_bytes = contents.file_bytes
    rows, stored = contents.layout.rows, contents.stored
    title = f"{folder if here else name} (layout: {contents.layout.name})"
    if not tensors:
        return Subject(title, contents.config, file_bytes)
    kinds = {
        name: f"{shape_text(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in stored.items()
    }
    ignored = tuple(sorted(contents.ignored))
    moves = tuple(fold(rows, kinds))
    return Subject(title, contents.config, file_bytes, moves, ignored)
