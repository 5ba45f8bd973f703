"""`xray`: one observed pass over a text, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, ModelConfig
from ossia.errors import OssiaError
from ossia.insight.xray.attention import Thumbnails
from ossia.insight.xray.clamp import Clamps
from ossia.insight.xray.collect import Collector, Piece, Shape
from ossia.insight.xray.effects import Difference, difference, precision_effects
from ossia.insight.xray.observed import Observed
from ossia.insight.xray.predict import lens, predictions
from ossia.insight.xray.reader import CHUNK, Reader
from ossia.insight.xray.trace import Trace
from ossia.insight.xray_options import XrayOptions
from ossia.model import Decoder
from ossia.options import split

_LENS_FLOPS = 2e12  # of unembedding, by default: some forty seconds on two cores
_THUMBNAIL = 128  # cells a side


Progress = Callable[[str], None]


@dataclass(frozen=True)
class Xray:
    """A trace, and what it was made of: the model, and its normalised hidden states (T, hidden)."""

    trace: Trace
    decoder: Decoder
    hidden: Tensor

    def against(self, other: Xray) -> Difference | None:
        """The difference of the other's predictions from these; None if they cannot be compared,
        because the texts or the vocabularies differ.
        """
        sizes = {x.decoder.config.vocab_size for x in (self, other)}
        if len(sizes) > 1 or not torch.equal(self.trace.tokens, other.trace.tokens):
            return None
        return difference((self.decoder, self.hidden), (other.decoder, other.hidden))


def xray(model: Decoder, tokens: Sequence[int] | Tensor, **options: Any) -> Trace:
    """An x-ray of one text: what the model predicts, where its attention goes, which experts it
    uses and what becomes of its residual stream.

    model: as `load_model` returns it, of any family, with packed experts or int8 weights. tokens:
    ids of one text. options: the fields of `XrayOptions`. The model reads the text as an engine
    would, 512 tokens at a time; memory grows with the length of the text and not with its square,
    apart from the maps that are asked for. Raises OssiaError for tokens or maps that the model does
    not have, and for a text that is longer than its context.
    """
    (given,) = split(options, XrayOptions)
    return examine(model, tokens, given).trace


@torch.no_grad()
def examine(
    model: Decoder,
    tokens: Sequence[int] | Tensor,
    options: XrayOptions = XrayOptions(),
    progress: Progress = lambda _: None,
) -> Xray:
    """As `xray`. progress: is called with what is done next."""
    ids = _checked(model.config, tokens).to(model.device)
    length, shape = len(ids), Shape.of(model.config)
    maps = read_maps(model.config, options.maps)
    rows = _lens_rows(model.config, length, options.lens).to(model.device)
    clamps = Clamps(shape.layers) if options.clamp and _is_clamped(model.config) else None
    thumbnails = Thumbnails((shape.layers, shape.heads), length, _THUMBNAIL)
    collector = Collector(
        model.config, model.ops, maps=maps, rows=rows, thumbnails=thumbnails, clamps=clamps
    )
    reader = Reader(model.on(Observed(model.ops, collector)), length, chunk=CHUNK)
    pieces, hidden = [], []
    for part in ids.split(CHUNK):
        progress(f"reading tokens {reader.length:,} to {reader.length + len(part):,} of {length:,}")
        collector.begin(part)
        hidden.append(reader.read(part))
        pieces.append(collector.piece)
    del reader
    states = torch.cat(hidden)
    progress("predictions")
    found = predictions(model, states, ids[1:], options.top)
    progress("logit lens")
    streams = [torch.cat(parts) for parts in collector.streams]
    seen = lens(model, streams, rows, ids)
    del streams
    effects: dict[str, Difference] = {}
    if options.effects:
        effects |= precision_effects(model, states, ids, progress)
    counted = clamps or Clamps(shape.layers)
    trace = Trace(
        tokens=ids.cpu(),
        **vars(found),
        **vars(seen),
        **_joined(pieces),
        head_mass=collector.head_mass / length,
        thumbnails=thumbnails.maps,
        map_heads=torch.tensor(sorted(maps), dtype=torch.int32).view(-1, 2),
        maps=_stacked([collector.map(key, length) for key in sorted(maps)], length),
        clamp_counts=counted.counted,
        clamp_choices=counted.choices,
        near=collector.near,
        num_experts=shape.experts,
        differences=effects,
    )
    return Xray(trace, model, states)


def read_maps(config: ModelConfig, names: Sequence[str]) -> frozenset[tuple[int, int]]:
    """(layer, head) of each that is named: "3.0", "3" for all heads of a layer, or "all". Raises
    OssiaError for what the model does not have.
    """
    heads = [layer.attention.num_heads for layer in config.layers]
    every = {(layer, head) for layer, count in enumerate(heads) for head in range(count)}
    found: set[tuple[int, int]] = set()
    for name in names:
        match = re.fullmatch(r"(\d+)(?:\.(\d+))?", name)
        own = every if name == "all" else set()
        if match:
            layer, head = int(match[1]), match[2]
            own = {key for key in every if key[0] == layer and head in (None, str(key[1]))}
        if not own:
            raise OssiaError(
                f"--maps {name}: write LAYER.HEAD, LAYER or all; there are layers 0 to "
                f"{len(heads) - 1}, with heads 0 to {max(heads) - 1}"
            )
        found |= own
    return frozenset(found)


def _checked(config: ModelConfig, tokens: Sequence[int] | Tensor) -> Tensor:
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OssiaError(f"tokens are the ids of one text: {error}") from error
    if ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    if not ids.numel():
        raise OssiaError("the text is empty: there is nothing to x-ray")
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        kind = str(ids.dtype).removeprefix("torch.")
        raise OssiaError(f"tokens are the ids of one text, not {kind} {tuple(ids.shape)}")
    if len(ids) > config.context_length:
        raise OssiaError(
            f"the text has {len(ids):,} tokens, and the model's context is "
            f"{config.context_length:,}"
        )
    outside = ids[(ids < 0) | (ids >= config.vocab_size)]
    if len(outside):
        raise OssiaError(
            f"token id {int(outside[0])} is outside the model's vocabulary of {config.vocab_size}"
        )
    return ids.long()


def _lens_rows(config: ModelConfig, length: int, wanted: int | None) -> Tensor:
    """Positions of the lens, ascending, spread over the text and with its last one."""
    if wanted is None:
        each = 2 * config.vocab_size * config.hidden_size * (len(config.layers) + 1)
        wanted = max(1, int(_LENS_FLOPS // each))
    count = min(wanted, length)
    return length - 1 - torch.arange(count).flip(0) * length // max(count, 1)


def _is_clamped(config: ModelConfig) -> bool:
    return any(isinstance(x.feedforward.activation, ClampedSwiGLU) for x in config.layers)


def _joined(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """The chunks' arrays, joined along the tokens."""
    return {
        f.name: torch.cat([getattr(piece, f.name) for piece in pieces], dim=1)
        for f in fields(Piece)
    }


def _stacked(maps: list[Tensor], length: int) -> Tensor:
    return torch.stack(maps) if maps else torch.zeros(0, length, length, dtype=torch.float16)
