"""Models side by side: what their configs say, and what that costs, by the one counter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ossia.config import ExpertFormat, ModelConfig, with_expert_format
from ossia.insight import facts, footprint, roofline, units
from ossia.insight.counts import (
    Part,
    bytes_by_part,
    count,
    flops_by_part,
    forward_flops,
    kv_bytes,
    parameters_by_part,
)
from ossia.insight.facts import Model
from ossia.insight.hardware import HARDWARE, Hardware

UTILIZATION = 0.4  # of the peak, in training: what well-tuned runs report
TRAINING_TOKENS = 1e12
INT8_ELEMENT = 1 + 4 / 128  # bytes of `--dense int8`: a code, and its share of a group's scale
# What stands in a cell in place of None, by the row's key.
_ABSENT = {
    "overtakes": "never",
    "knee": "never",
    "longest": "does not fit",
    "read_dense": "no experts",
}


@dataclass(frozen=True)
class Setting:
    """What the models are compared at.

    context: tokens of each text, within every model's context. batches: numbers of sequences that
    are decoded together. memory: bytes that weights, keys and values are to fit in.
    """

    context: int
    batches: tuple[int, ...] = (1, 8, 64, 256)
    memory: int = 16 * 10**9
    hardware: tuple[Hardware, ...] = (HARDWARE["h100"], HARDWARE["rtx-5090"], HARDWARE["m4-max"])


@dataclass(frozen=True)
class Row:
    """One line: a cell for each model, and the same as a value for programs."""

    key: str
    label: str
    values: tuple[Any, ...]
    cells: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.cells)) > 1


@dataclass(frozen=True)
class Group:
    title: str
    rows: tuple[Row, ...]
    note: str = ""
    hardware: Hardware | None = None


@dataclass(frozen=True)
class Comparison:
    models: tuple[Model, ...]
    setting: Setting
    groups: tuple[Group, ...] = field(repr=False)

    @property
    def title(self) -> str:
        return " and ".join(model.name for model in self.models)

    def record(self) -> dict[str, Any]:
        """The comparison as JSON: `figures` of each model, by the keys of the rows."""
        found = []
        for i, model in enumerate(self.models):
            figures = {
                group.hardware.name if group.hardware else group.title: {
                    row.key: row.values[i] for row in group.rows
                }
                for group in self.groups
            }
            found.append({"name": model.name, "figures": figures})
        setting = asdict(self.setting)
        return {"setting": setting, "models": found}


def compare(models: Sequence[Model], setting: Setting) -> Comparison:
    """The comparison, at a context that every model supports."""
    groups = [
        _group(models, "Architecture", _ARCHITECTURE),
        _group(models, "Parameters", list(_parameters(models))),
        _group(models, "Compute", list(_compute(setting.context))),
        _group(models, "Memory", list(_memory(setting))),
    ]
    groups += [_bounds(models, hardware, setting) for hardware in setting.hardware]
    return Comparison(tuple(models), setting, tuple(groups))


Measure = tuple[str, str, Callable[[ModelConfig], Any], Callable[[Any], str]]  # key, label, ...


def _group(models: Sequence[Model], title: str, measures: Sequence[Measure]) -> Group:
    return Group(title, tuple(_row(models, measure) for measure in measures))


def _row(models: Sequence[Model], measure: Measure) -> Row:
    key, label, value, words = measure
    values = tuple(value(model.config) for model in models)
    absent = _ABSENT.get(key, "none")
    return Row(key, label, values, tuple(absent if v is None else words(v) for v in values))


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


_ARCHITECTURE: list[Measure] = [
    ("layers", "layers", lambda c: len(c.layers), units.whole),
    ("hidden_size", "width", lambda c: c.hidden_size, units.whole),
    ("heads", "attention heads", facts.heads, str),
    ("pattern", "attention sees", facts.pattern, str),
    ("sinks", "attention sinks", facts.sinks, str),
    ("qk_norm", "QK-norm", lambda c: facts.qk_norm(c) != facts.NONE, _yes_or_no),
    ("biases", "biases in attention", lambda c: facts.bias(c) != facts.NONE, _yes_or_no),
    ("position", "positions", facts.position, str),
    ("norm", "norm", facts.norm, str),
    ("feedforward", "feed-forward", facts.feedforward, str),
    ("inner_width", "inner width", facts.inner_width, str),
    ("activation", "activation", facts.activation, str),
    ("router", "router", facts.router, str),
    ("vocabulary", "vocabulary", lambda c: c.vocab_size, units.whole),
    ("unembedding", "unembedding", facts.unembedding, str),
    ("context_length", "context", lambda c: c.context_length, units.whole),
    ("precision", "precision", facts.precision, str),
    ("dropout", "dropout in training", facts.dropout, str),
]


def _parameters(models: Sequence[Model]) -> Iterator[Measure]:
    yield "total", "all", lambda c: count(c).parameters, units.whole
    yield "active", "active per token", lambda c: count(c).active_parameters, units.whole
    yield (
        "share",
        "active share",
        lambda c: count(c).active_parameters / count(c).parameters,
        _share,
    )
    found = [parameters_by_part(model.config) for model in models]
    for part in Part:
        if any(part in parts for parts in found):
            yield part.name.lower(), f"in {part}", _of_part(part), units.amount


def _of_part(part: Part) -> Callable[[ModelConfig], int | None]:
    return lambda config: parameters_by_part(config).get(part, (None, 0))[0]


def _compute(context: int) -> Iterator[Measure]:
    n = units.whole(context)
    yield "decode_first", "FLOPs of a token, alone", lambda c: _decode(c, 1), units.flops
    yield "decode", f"FLOPs of a token after {n}", lambda c: _decode(c, context), units.flops
    yield "prompt", f"FLOPs of a prompt of {n}", lambda c: forward_flops(c, context), units.flops
    yield (
        "overtakes",
        "attention overtakes feed-forward at",
        footprint.attention_overtakes,
        _position,
    )


def _decode(config: ModelConfig, length: int) -> int:
    return sum(flops_by_part(config, length).values())


def _memory(setting: Setting) -> Iterator[Measure]:
    n = units.whole(setting.context)
    yield "checkpoint", "checkpoint", lambda c: count(c).checkpoint_bytes, units.size
    yield "read", "read per token", lambda c: sum(bytes_by_part(c).values()), units.size
    yield "read_int8", "with dense weights in int8", _int8, units.size
    yield "read_dense", "with experts in bfloat16", _unpacked, units.size
    yield "kv_token", "keys and values per token", lambda c: kv_bytes(c, 1), units.size
    yield "kv", f"keys and values of {n}", lambda c: kv_bytes(c, setting.context), units.size
    yield "kv_full", "at full context", lambda c: kv_bytes(c, c.context_length), units.size
    yield "run", f"to run {n} tokens", lambda c: footprint.run_bytes(c, setting.context), units.size
    yield "lora", "to fine-tune with LoRA", lambda c: footprint.lora(c).total, units.size
    yield "train", "to train", footprint.training_bytes, units.size
    memory = units.size(setting.memory)
    yield (
        "longest",
        f"longest text in {memory}",
        lambda c: footprint.longest_context(c, setting.memory),
        units.whole,
    )


def _int8(config: ModelConfig) -> float:
    return sum(bytes_by_part(config, element_bytes=INT8_ELEMENT).values())


def _unpacked(config: ModelConfig) -> float | None:
    if not facts.mixtures(config):
        return None
    return sum(bytes_by_part(with_expert_format(config, ExpertFormat.DENSE)).values())


def _bounds(models: Sequence[Model], hardware: Hardware, setting: Setting) -> Group:
    """Bounds on one machine, whether a model fits it or not; those of compute where its rate is
    known.
    """
    context, measures = setting.context, list[Measure]()
    if hardware.memory_bytes is not None:
        room = hardware.memory_bytes
        measures.append(
            ("fits", f"fits in {units.size(room)}", lambda c: _fits(c, room, context), str)
        )
    for batch in setting.batches:
        together = "one sequence" if batch == 1 else f"{units.whole(batch)} together"
        measures.append(
            (
                f"decode_{batch}",
                f"tokens/s, {together}",
                _speed(hardware, batch, context),
                units.digits,
            )
        )
    if hardware.flops is not None:
        measures += _compute_bounds(hardware, context)
    return Group(
        f"At most, on {hardware.name}",
        tuple(_row(models, measure) for measure in measures),
        _words(hardware),
        hardware,
    )


def _compute_bounds(hardware: Hardware, context: int) -> Iterator[Measure]:
    n = units.whole(context)
    yield (
        "knee",
        "compute-bound from a batch of",
        lambda c: roofline.knee(c, hardware, context),
        units.whole,
    )
    yield (
        "first_token",
        f"first token after {n}",
        lambda c: roofline.prompt(c, hardware, 1, context).seconds,
        units.seconds,
    )
    yield (
        "training_hours",
        "hours to train on a trillion tokens",
        lambda c: roofline.training_hours(c, hardware, TRAINING_TOKENS, context, UTILIZATION),
        units.whole,
    )


def _speed(hardware: Hardware, batch: int, context: int) -> Callable[[ModelConfig], float]:
    return lambda c: roofline.decoding(c, hardware, batch, context).tokens_per_second


def _fits(config: ModelConfig, room: float, context: int) -> str:
    left = roofline.largest_batch(config, room, context)
    if left:
        return f"with {units.whole(left)} texts"
    return "no: " + units.size(footprint.run_bytes(config, context))


def _words(hardware: Hardware) -> str:
    text = f"Reads {units.size(hardware.read_bytes_per_second)}/s"
    if hardware.flops is not None:
        text += f", multiplies at {units.rate(hardware.flops)} in bfloat16"
    return f"{text} ({hardware.note})" if hardware.note else text


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _position(value: int) -> str:
    return f"token {units.whole(value)}"
