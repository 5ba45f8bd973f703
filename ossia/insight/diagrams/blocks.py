"""The block of each model side by side, from the embedding below to the logits above; what differs
between the models is marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ossia.config import LearnedPositions, ModelConfig
from ossia.insight import facts
from ossia.insight.diagrams.columns import COLUMN, TOP, Columns
from ossia.insight.drawing import LINE, Drawing, wrapped
from ossia.insight.facts import NONE, Model
from ossia.insight.svg import Heading
from ossia.insight.units import whole

_RAIL = 18.0  # beside the boxes of a layer, for the residual stream's bypass
_INSET = 12.0  # of text in a box
_SPACE = 15.0  # between boxes
_PLUS = 8.0  # radius of an addition


Fact = Callable[[ModelConfig], str]


@dataclass(frozen=True)
class _Box:
    """A box: its title, and facts, a line each. A fact that is empty of every model is left out."""

    title: Fact
    facts: tuple[Fact, ...] = ()


def _network(config: ModelConfig) -> str:
    mixed = facts.mixtures(config)
    if not mixed:
        return "Feed-forward network"
    return "Mixture of experts" if len(facts.networks(config)) == len(mixed) else "Experts or dense"


def _heads(config: ModelConfig, field: str) -> str:
    values = dict.fromkeys(getattr(kind, field) for kind in facts.attentions(config))
    return " / ".join(str(value) for value in values)


def _absent(fact: Fact, name: str, present: str = "") -> Fact:
    """The fact, or `present` in its place; "no NAME" where it is none."""
    return lambda config: f"no {name}" if fact(config) == NONE else present or fact(config)


def _rotation(config: ModelConfig) -> str:
    position = config.position
    return NONE if isinstance(position, LearnedPositions) else f"RoPE, θ {position.theta:,.0f}"


def _yarn(config: ModelConfig) -> str:
    yarn = None if isinstance(config.position, LearnedPositions) else config.position.yarn
    return f"YaRN x{yarn.factor:g}" if yarn else NONE


def _learned(config: ModelConfig) -> str:
    learned = isinstance(config.position, LearnedPositions)
    return f"{whole(config.context_length)} learned positions" if learned else NONE


def _sees(config: ModelConfig) -> str:
    windows = Counter(layer.attention.window for layer in config.layers)
    return "\n".join(
        f"{count} layers see {'all' if window is None else f'{whole(window)} tokens'}"
        for window, count in windows.items()
    )


_OUTPUT = (
    _Box(
        lambda _: "Unembedding",
        (lambda c: f"{whole(c.vocab_size)} logits", facts.unembedding),
    ),
    _Box(facts.norm),
)
_FEEDFORWARD = (
    _Box(
        _network,
        (
            facts.feedforward,
            lambda c: f"{facts.inner_width(c)} wide inside",
            facts.activation,
            _absent(facts.router, "router"),
            lambda c: f"weights in {facts.expert_format(c)}",
        ),
    ),
    _Box(facts.norm),
)
_ATTENTION = (
    _Box(
        lambda _: "Attention",
        (
            lambda c: f"{_heads(c, 'num_heads')} query heads",
            lambda c: f"{_heads(c, 'num_kv_heads')} heads of keys, values",
            lambda c: f"{_heads(c, 'head_dim')} wide each",
            _absent(_rotation, "rotation"),
            _absent(_yarn, "YaRN"),
            _absent(facts.qk_norm, "QK-norm"),
            _absent(facts.sinks, "sinks", "a sink per query head"),
            _absent(facts.bias, "biases"),
            _sees,
        ),
    ),
    _Box(facts.norm),
)
_INPUT = (
    _Box(
        lambda _: "Embedding",
        (
            lambda c: f"{whole(c.vocab_size)} tokens, {whole(c.hidden_size)} wide",
            _absent(_learned, "learned positions"),
            lambda c: f"dropout {d}" if (d := facts.dropout(c)) != NONE else "no dropout",
        ),
    ),
)


def blocks(models: Sequence[Model], name: str = "blocks") -> str:
    """The blocks of the models; `name` is unique within the page."""
    columns = Columns(models)
    y = TOP
    y = _stack(columns, _OUTPUT, y)
    frame = y
    y += 30
    for boxes in (_FEEDFORWARD, _ATTENTION):
        plus = y + _PLUS
        y = _stack(columns, boxes, plus + _PLUS + _SPACE)
        for left in columns.lefts:
            _bypass(columns.drawing, left, plus, y - _SPACE / 2)
    y += 2
    for left, model in zip(columns.lefts, models, strict=True):
        x = left + COLUMN / 2
        columns.drawing.rect((left, frame), (COLUMN, y - frame), "frame", 10)
        columns.drawing.line((x, frame), (x, frame + 30), "wire")
        columns.drawing.line((x, y - 2), (x, y + _SPACE), "wire")
        _repeat(columns, model, left, frame)
    y = _stack(columns, _INPUT, y + _SPACE, last=True)
    _legend(columns, y + 14)
    spoken = [
        f"{facts.shape(m.config)}; {facts.heads(m.config)}; {facts.feedforward(m.config)}"
        for m in models
    ]
    title = f"The blocks of {' and '.join(m.name for m in models)}"
    return columns.drawing.finish(Heading(name, title, columns.spoken(spoken)), y + 22)


def _repeat(columns: Columns, model: Model, left: float, top: float) -> None:
    """How often the layer in the frame is repeated."""
    counts = {len(m.config.layers) for m in columns.models}
    kind = "bold mark" if len(counts) > 1 else "bold"
    columns.drawing.text(
        (left + 12, top + 18), f"\N{MULTIPLICATION SIGN} {len(model.config.layers)} layers", kind
    )


def _stack(columns: Columns, boxes: Sequence[_Box], y: float, *, last: bool = False) -> float:
    """Draw boxes from y down, with wires between them; the y below the last one's wire."""
    room = COLUMN - 2 * _RAIL
    for box in boxes:
        lines = [fact for fact in box.facts if not _absent_everywhere(columns, fact)]
        heights = [max(len(w) for w in _written(columns, fact)) for fact in lines]
        height = LINE * (1 + sum(heights)) + 12 + (3 if lines else 0)
        differs = any(_differs(columns, fact) for fact in (box.title, *lines))
        for left, model in zip(columns.lefts, columns.models, strict=True):
            drawing, x = columns.drawing, left + _RAIL
            drawing.rect((x, y), (room, height), "changed" if differs else "plain", 6)
            middle, at = x + room / 2, y + 17
            kind = "bold mark" if _differs(columns, box.title) else "bold"
            title = box.title(model.config)
            drawing.text((middle, at), title, kind, anchor="middle", room=room - _INSET)
            at += LINE + 3
            for fact, rows in zip(lines, heights, strict=True):
                kind = "mark" if _differs(columns, fact) else ""
                for i, text in enumerate(wrapped(fact(model.config), room - _INSET)):
                    drawing.text((middle, at + i * LINE), text, kind, anchor="middle")
                at += LINE * rows
            if not (last and box is boxes[-1]):
                _wire(drawing, left + COLUMN / 2, y + height, y + height + _SPACE)
        y += height + _SPACE
    return y


def _written(columns: Columns, fact: Fact) -> list[list[str]]:
    room = COLUMN - 2 * _RAIL - _INSET
    return [wrapped(fact(model.config), room) for model in columns.models]


def _differs(columns: Columns, fact: Fact) -> bool:
    return len({fact(model.config) for model in columns.models}) > 1


def _absent_everywhere(columns: Columns, fact: Fact) -> bool:
    return all(fact(model.config).startswith("no ") for model in columns.models)


def _wire(drawing: Drawing, x: float, top: float, bottom: float) -> None:
    """A wire with an arrow that points up, the way the activations go."""
    drawing.line((x, bottom), (x, top), "wire")
    drawing.path(
        f"M{x - 3.5:.1f} {top + 5:.1f}L{x:.1f} {top:.1f}L{x + 3.5:.1f} {top + 5:.1f}", "wire"
    )


def _bypass(drawing: Drawing, left: float, plus: float, bottom: float) -> None:
    """The residual stream around the boxes, added to their result."""
    x, rail = left + COLUMN / 2, left + _RAIL / 2
    _wire(drawing, x, plus + _PLUS, plus + _PLUS + _SPACE)
    drawing.path(
        f"M{x:.1f} {bottom:.1f}H{rail + 6:.1f}q-6 0 -6 -6V{plus + 6:.1f}q0 -6 6 -6H{x - _PLUS:.1f}",
        "wire",
    )
    drawing.circle((x, plus), _PLUS, "plain")
    drawing.path(f"M{x - 4:.1f} {plus:.1f}h8M{x:.1f} {plus - 4:.1f}v8", "wire")


def _legend(columns: Columns, y: float) -> None:
    if len(columns.models) > 1:
        columns.drawing.rect((0, y - 9), (12, 10), "changed", 2)
        columns.drawing.text((18, y), "differs between the models", "small quiet")
