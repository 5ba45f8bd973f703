"""`ossia inspect`: what a model is, what it costs, and where each tensor of its checkpoint goes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.config import (
    GELU,
    ExpertFormat,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    ModelConfig,
    MoEConfig,
    Router,
    SwiGLU,
)
from ossia.errors import OssiaError

if TYPE_CHECKING:
    from ossia.families.mapping import Index, Row
    from ossia.insight.counts import Counts


def inspect(
    path_or_name: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_NAME",
            help="A preset (gpt2, qwen3-0.6b, gpt-oss-20b, ...), checkpoint folder or hub name.",
        ),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Also show where each tensor on disk goes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe a model: layers, parameters, bytes, tensors.

    A preset costs nothing to describe: no weights are needed. For a checkpoint folder only the
    headers of its files are read.
    """
    from ossia.insight.counts import count

    subject = _checkpoint(path_or_name, tensors) or _preset(path_or_name, tensors)
    counts = count(subject.config)
    if as_json:
        print(json.dumps(_record(subject, counts), ensure_ascii=False))
        return
    for label, text in _description(subject, counts):
        print(f"{label:<18}{text}".rstrip())
    if tensors:
        print("\ntensors: on disk -> in the model, shape on disk")
        left, right = (
            max(map(len, names))
            for names in zip(*((move.theirs, move.ours) for move in subject.moves), strict=True)
        )
        for move in subject.moves:
            print(f"  {move.theirs:<{left}} -> {move.ours:<{right}}  {move.kind}")
        for name in subject.ignored:
            print(f"  {name}  ignored")


@dataclass(frozen=True)
class Move:
    """Where tensors on disk go, those that differ only in layer or expert folded into one: names
    with ranges of numbers.
    """

    theirs: str
    ours: str
    kind: str  # shape, dtype where a file says it


@dataclass(frozen=True)
class _Subject:
    name: str
    config: ModelConfig
    file_bytes: int | None  # of a checkpoint's weight files
    moves: tuple[Move, ...] = ()
    ignored: tuple[str, ...] = ()


def _preset(name: str, tensors: bool) -> _Subject:
    from ossia.families import PRESETS, layouts

    config = PRESETS[name]
    if not tensors:
        return _Subject(f"{name} (preset)", config, None)
    from ossia.checkpoint.regions import stored_shapes
    from ossia.insight.counts import tensors as parameters

    rows = layouts(config)[0].rows
    shapes = stored_shapes(rows, {tensor.name: tensor.shape for tensor in parameters(config)})
    kinds = {name: _times(shape) for name, shape in shapes.items()}
    return _Subject(f"{name} (preset)", config, None, tuple(fold(rows, kinds)))


def _checkpoint(name: str, tensors: bool) -> _Subject | None:
    """The checkpoint of that name; None if it is a preset's name."""
    from ossia.families import PRESETS, layouts

    if name in PRESETS:
        return None
    if not os.path.exists(os.path.expanduser(name)) and "/" not in name:
        raise OssiaError(
            f"{name} is neither a checkpoint folder nor a preset; "
            f"the presets are {', '.join(PRESETS)}"
        )
    from ossia import checkpoint
    from ossia.checkpoint.files import read_tensors
    from ossia.checkpoint.load import check_headers, choose_layout, without_weights

    folder = checkpoint.find(name)
    config = checkpoint.read_config(folder)
    stored = read_tensors(folder)
    layout = choose_layout(layouts(config), stored, folder)
    check_headers(without_weights(config, folder), layout, stored)
    file_bytes = sum(file.stat().st_size for file in {tensor.file for tensor in stored.values()})
    subject = f"{folder} (layout: {layout.name})"
    if not tensors:
        return _Subject(subject, config, file_bytes)
    kinds = {
        tensor.name: f"{_times(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for tensor in stored.values()
    }
    used = {row.theirs for row in layout.rows}
    ignored = tuple(sorted(stored.keys() - used))
    return _Subject(subject, config, file_bytes, tuple(fold(layout.rows, kinds)), ignored)


def _description(subject: _Subject, counts: Counts) -> Iterable[tuple[str, str]]:
    from ossia.insight.counts import kv_bytes

    config = subject.config
    yield "model", subject.name
    yield "parameters", _parameters(counts.parameters)
    yield "active", f"{_parameters(counts.active_parameters)} for each token"
    yield "layers", str(len(config.layers))
    yield "hidden size", f"{config.hidden_size:,}"
    tied = "tied to" if config.tied_embeddings else "apart from"
    yield "vocabulary", f"{config.vocab_size:,}, unembedding {tied} the embedding"
    yield "context", f"{config.context_length:,} tokens"
    yield "positions", _positions(config)
    yield "norm", _norm(config)
    for layer in dict.fromkeys(config.layers):
        numbers = [i for i, other in enumerate(config.layers) if other == layer]
        every = len(numbers) == len(config.layers)
        some = f"{'layer' if len(numbers) == 1 else 'layers'} {ranges(numbers)}"
        yield "every layer" if every else some, ""
        yield "  attention", _attention(layer)
        yield "  feed-forward", _feedforward(layer, config)
    yield "precision", config.dtype
    weights = f"{_bytes(counts.checkpoint_bytes)} of tensors"
    if subject.file_bytes is not None:
        weights += f", {_bytes(subject.file_bytes)} on disk"
    yield "weights", weights
    yield "read per token", f"{_bytes(counts.bytes_per_token)} of weights to decode one token"
    full = kv_bytes(config, config.context_length)
    yield "KV cache", f"{counts.kv_bytes_per_token:,} bytes a token, {_bytes(full)} at full context"
    small, full = (kv_bytes(config, n, int8=True) for n in (1, config.context_length))
    yield "  --kv int8", f"{small:,} bytes a token, {_bytes(full)} at full context"


def _positions(config: ModelConfig) -> str:
    position = config.position
    if isinstance(position, LearnedPositions):
        return "learned"
    text = f"RoPE, theta {position.theta:,.0f}"
    if position.yarn is not None:
        yarn = position.yarn
        text += f", YaRN x{yarn.factor:g} from {yarn.original_context:,} tokens"
    return text


def _norm(config: ModelConfig) -> str:
    kind = "LayerNorm" if isinstance(config.norm, LayerNorm) else "RMSNorm"
    return f"{kind}, eps {config.norm.eps:g}"


def _attention(layer: LayerConfig) -> str:
    attention = layer.attention
    parts = [
        f"{attention.num_heads} query heads, {attention.num_kv_heads} key/value heads "
        f"of {attention.head_dim}"
    ]
    parts.append("full" if attention.window is None else f"window {attention.window:,}")
    for present, name in (
        (attention.qk_norm, "QK-norm"),
        (attention.sinks, "sinks"),
        (attention.bias, "bias"),
    ):
        parts += [name] if present else []
    return ", ".join(parts)


_ROUTERS = {
    Router.TOP_K_THEN_SOFTMAX: "top-k, then softmax",
    Router.SOFTMAX_THEN_TOP_K: "softmax, then top-k",
    Router.SOFTMAX_THEN_TOP_K_RENORMALIZED: "softmax, top-k, renormalised",
}


def _feedforward(layer: LayerConfig, config: ModelConfig) -> str:
    network = layer.feedforward
    if isinstance(network.activation, GELU):
        activation = "GELU"
    elif isinstance(network.activation, SwiGLU):
        activation = "SwiGLU"
    else:
        activation = f"SwiGLU clamped at {network.activation.limit:g}"
    bias = ", bias" if network.bias else ""
    if not isinstance(network, MoEConfig):
        return f"{network.intermediate_size:,} wide, {activation}{bias}"
    held = "MXFP4" if network.format is ExpertFormat.MXFP4 else config.dtype
    return (
        f"{network.experts_per_token} of {network.num_experts} experts "
        f"{network.intermediate_size:,} wide in {held}, {activation}{bias}; "
        f"router: {_ROUTERS[network.router]}"
    )


def _record(subject: _Subject, counts: Counts) -> dict[str, Any]:
    from ossia.insight.counts import kv_bytes

    config = subject.config
    record = {
        "name": subject.name,
        **{item.name: getattr(counts, item.name) for item in fields(counts)},
        "kv_bytes_full_context": kv_bytes(config, config.context_length),
        "kv_bytes_per_token_int8": kv_bytes(config, 1, int8=True),
        "kv_bytes_full_context_int8": kv_bytes(config, config.context_length, int8=True),
        "file_bytes": subject.file_bytes,
        "config": _tagged(config),
    }
    if subject.moves:
        record["tensors"] = [
            {"stored": move.theirs, "parameter": move.ours, "kind": move.kind}
            for move in subject.moves
        ]
        record["ignored"] = subject.ignored
    return record


def _tagged(value: Any) -> Any:
    """A config as JSON, each part with the name of its type."""
    if is_dataclass(value):
        parts = {item.name: _tagged(getattr(value, item.name)) for item in fields(value)}
        return {"type": type(value).__name__, **parts}
    if isinstance(value, tuple):
        return [_tagged(item) for item in value]
    return value


# A whole part of a dotted name, or of an index, that is a number: a layer or an expert.
_NUMBER = re.compile(r"(?<![^.\[ ])\d+(?![^.,\]])")


def fold(rows: Iterable[Row], kinds: Mapping[str, str]) -> Iterable[Move]:
    """Rows that differ only in numbers (layers, experts) as one move each, in order of first
    appearance.

    kinds: what to say of each tensor on disk, by name; rows whose tensors differ in it stay apart.
    """
    groups: dict[tuple[str, str, str], list[tuple[int, ...]]] = {}
    for row in rows:
        theirs = row.theirs + _index(row.their_index)
        ours = row.ours + _index(row.our_index)
        kind = kinds[row.theirs] + (" transposed" if row.transpose else "")
        numbers = (*_NUMBER.findall(theirs), *_NUMBER.findall(ours))
        key = _NUMBER.sub("{}", theirs), _NUMBER.sub("{}", ours), kind
        groups.setdefault(key, []).append(tuple(map(int, numbers)))
    for (theirs, ours, kind), members in groups.items():
        columns = [ranges(sorted(set(column))) for column in zip(*members, strict=True)]
        split = theirs.count("{}")
        yield Move(theirs.format(*columns[:split]), ours.format(*columns[split:]), kind)


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in few words: "3", "0-23", "0,2,...,22", else all of them."""
    steps = {later - earlier for earlier, later in pairwise(numbers)}
    if len(numbers) < 3 or len(steps) > 1:
        return ",".join(map(str, numbers))
    if steps == {1}:
        return f"{numbers[0]}-{numbers[-1]}"
    return f"{numbers[0]},{numbers[1]},...,{numbers[-1]}"


def _index(index: Index) -> str:
    """An index as Python writes it."""
    parts = [str(entry) if isinstance(entry, int) else _slice(entry) for entry in index]
    return f"[{', '.join(parts)}]" if parts else ""


def _slice(entry: slice) -> str:
    start, stop, step = ("" if n is None else str(n) for n in (entry.start, entry.stop, entry.step))
    return f"{start}:{stop}" + (f":{step}" if step else "")


def _times(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _parameters(count: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count:,} ({count / size:.3g} {unit})"
    return f"{count:,}"


def _bytes(count: int) -> str:
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,} bytes"
