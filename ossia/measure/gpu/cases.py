"""What is measured: the rows of the report, and the shapes of two suites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from ossia.config import Dropout, LayerConfig, ModelConfig, MoEConfig
from ossia.families import PRESETS
from ossia.insight import roofline
from ossia.insight.counts import count, training_flops
from ossia.insight.hardware import Hardware
from ossia.train.runs.presets import GptOssSizes, gpt_oss


class Measure(StrEnum):
    LOAD = "load"
    WEIGHTS = "weights"
    PEAK = "most beside the cache"
    PREFILL = "prefill"
    DECODE = "decode"
    TRAINING = "training"


_RATE = "tokens/s"
_UNITS = {Measure.LOAD: "s", Measure.WEIGHTS: "GB", Measure.PEAK: "GB"}


class Side(StrEnum):
    """Whose figure it is."""

    OSSIA = "ossia"
    PEER = "transformers"


@dataclass(frozen=True)
class Case:
    """A row. length: tokens of a prompt, or of the context that is decoded after, or of a row of
    text that is trained on. batch: how many of them at a time.
    """

    model: str
    measure: Measure
    batch: int = 1
    length: int = 0

    @property
    def unit(self) -> str:
        return _UNITS.get(self.measure, _RATE)

    @property
    def more_is_better(self) -> bool:
        return self.unit == _RATE

    def __str__(self) -> str:
        parts = {
            Measure.PREFILL: f" of {self.length:,}",
            Measure.DECODE: f", {self.batch} x {self.length:,}",
            Measure.TRAINING: f", {self.batch} x {self.length:,}",
        }
        unit = "" if self.unit == _RATE else f", {self.unit}"
        return self.measure + parts.get(self.measure, "") + unit

    def limit(self, config: ModelConfig, card: Hardware | None, copy: float | None) -> float | None:
        """The best that the card's measured limits allow, in the row's unit; None if there is none,
        or if they are unknown.

        copy: bytes per second from the host's memory to the card. Training at its limit has a model
        FLOPs utilization of 1.
        """
        if self.measure is Measure.LOAD:
            return count(config).checkpoint_bytes / copy if copy else None
        if self.measure is Measure.WEIGHTS:
            return count(config).checkpoint_bytes / 1e9
        if card is None or self.measure is Measure.PEAK:
            return None
        if self.measure is Measure.PREFILL:
            return self.length / roofline.prompt(config, card, 1, self.length).seconds
        if self.measure is Measure.DECODE:
            return roofline.decoding(config, card, self.batch, self.length).tokens_per_second
        return card.flops / training_flops(config, self.length) if card.flops else None


@dataclass(frozen=True)
class Served:
    """A model to load, prompt and decode. stored: it is loaded from files, which takes the time of
    writing them; else its weights are made in memory. peer_*: what transformers is measured at.
    """

    name: str
    config: ModelConfig
    prompts: tuple[int, ...]
    decodes: tuple[tuple[int, int], ...]  # batch and context
    stored: bool = False
    peer_prompts: tuple[int, ...] = ()
    peer_decodes: tuple[tuple[int, int], ...] = ()

    def cases(self, side: Side = Side.OSSIA) -> Iterator[Case]:
        ours = side is Side.OSSIA
        if ours and self.stored:
            yield Case(self.name, Measure.LOAD)
        yield Case(self.name, Measure.WEIGHTS)
        for length in self.prompts if ours else self.peer_prompts:
            yield Case(self.name, Measure.PREFILL, 1, length)
        for batch, context in self.decodes if ours else self.peer_decodes:
            yield Case(self.name, Measure.DECODE, batch, context)
        if ours:
            yield Case(self.name, Measure.PEAK)


@dataclass(frozen=True)
class Trained:
    """A model to train in bfloat16 on batches of `rows` texts of `length` tokens."""

    name: str
    config: ModelConfig
    rows: int
    length: int
    has_peer: bool = False

    def cases(self, _: Side = Side.OSSIA) -> Iterator[Case]:
        yield Case(self.name, Measure.TRAINING, self.rows, self.length)


@dataclass(frozen=True)
class Suite:
    """What a run measures. steps: decoded in a turn. turns: of which the median counts.
    buffer_bytes, product: sizes of what measures the limits.
    """

    served: tuple[Served, ...]
    trained: tuple[Trained, ...]
    steps: int
    turns: int
    buffer_bytes: int
    product: int

    @property
    def stored(self) -> Served:
        """The model that is written to files and loaded from them."""
        return next(model for model in self.served if model.stored)

    def model(self, name: str) -> Served:
        return next(model for model in self.served if model.name == name)

    def training(self, name: str) -> Trained:
        return next(model for model in self.trained if model.name == name)

    def config(self, name: str) -> ModelConfig:
        return next(m.config for m in (*self.served, *self.trained) if m.name == name)


def _moe(sizes: GptOssSizes, vocab_size: int) -> ModelConfig:
    return replace(gpt_oss(sizes), vocab_size=vocab_size, dtype="float32")


_GPT2 = replace(PRESETS["gpt2"], dropout=Dropout(), dtype="float32")
_MOE = GptOssSizes(768, 12, 12, 4, 64, 32, 4, 768, 128, 1024, 1024)
_LONG = 65_536

FULL = Suite(
    served=(
        Served(
            "gpt-oss-20b",
            PRESETS["gpt-oss-20b"],
            prompts=(512, 2048, 8192, 32_768),
            decodes=(
                *((1, context) for context in (128, 8192, _LONG)),
                *((8, context) for context in (128, 8192, _LONG)),
                *((64, context) for context in (128, 8192, _LONG)),
                *((256, context) for context in (128, 8192, _LONG)),
            ),
            stored=True,
            peer_prompts=(512, 2048),
            peer_decodes=((1, 128), (8, 128)),
        ),
        Served(
            "qwen3-8b",
            PRESETS["qwen3-8b"],
            prompts=(512, 8192),
            decodes=((1, 128), (1, 8192), (8, 128), (64, 128)),
        ),
        Served(
            "qwen3-0.6b",
            PRESETS["qwen3-0.6b"],
            prompts=(512, 8192),
            decodes=((1, 128), (1, 8192), (8, 128), (64, 128), (256, 128)),
        ),
    ),
    trained=(
        Trained("gpt2", _GPT2, 32, 1024, has_peer=True),
        Trained("gpt-oss, 12 x 768", _moe(_MOE, 50_257), 8, 1024),
    ),
    steps=16,
    turns=3,
    buffer_bytes=4 << 30,
    product=8192,
)


def _smaller(config: ModelConfig) -> ModelConfig:
    """The architecture with two layers of width 64."""

    def layer(published: LayerConfig) -> LayerConfig:
        attention = published.attention
        shared = attention.num_kv_heads < attention.num_heads
        attention = replace(
            attention,
            num_heads=4,
            num_kv_heads=2 if shared else 4,
            head_dim=16,
            window=attention.window and 8,
        )
        feedforward = replace(published.feedforward, intermediate_size=64)
        if isinstance(feedforward, MoEConfig):
            feedforward = replace(feedforward, num_experts=4, experts_per_token=2)
        return LayerConfig(attention, feedforward)

    layers = tuple(map(layer, config.layers[:2]))
    return replace(
        config, hidden_size=64, layers=layers, vocab_size=128, eos_ids=(), bos_id=None, pad_id=None
    )


def _rehearsed(model: Served) -> Served:
    peered = ((1, 8), (2, 8)) if model.peer_decodes else ()
    return replace(
        model,
        config=_smaller(model.config),
        prompts=(8, 20),
        decodes=((1, 8), (2, 40)),
        peer_prompts=(8,) if model.peer_prompts else (),
        peer_decodes=peered,
    )


# Every row's code in seconds, on a CPU: its figures mean nothing.
REHEARSAL = replace(
    FULL,
    served=tuple(map(_rehearsed, FULL.served)),
    trained=(
        Trained("gpt2", replace(_smaller(_GPT2), context_length=32), 2, 16, has_peer=True),
        Trained(
            FULL.trained[1].name,
            _moe(GptOssSizes(64, 2, 4, 2, 16, 4, 2, 64, 8, 32, 32), 128),
            2,
            16,
        ),
    ),
    steps=2,
    turns=1,
    buffer_bytes=1 << 20,
    product=64,
)

SUITES = {"full": FULL, "rehearsal": REHEARSAL}
