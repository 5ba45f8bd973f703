"""The parts of an LLM, and loading them from a checkpoint."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ossia import checkpoint, text
from ossia.api.ranks import lead
from ossia.checkpoint import Beside, Placement
from ossia.engine import Engine, SamplingParams
from ossia.engine.capacity import room
from ossia.engine.driver import Driver
from ossia.errors import OssiaError
from ossia.offload import ExpertReads, store_of

if TYPE_CHECKING:
    from ossia.offload.store import ExpertStore
    from ossia.options import EngineOptions, LoadOptions


_LEAST_KEYS = 256 << 20  # bytes on a GPU


@dataclass(frozen=True)
class Defaults:
    """What a checkpoint's generation_config.json sets: values of sampling, and the ids that end a
    text. `wrong` are the problems of values that cannot be used, which only matter to a call that
    does not give its own.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    eos_ids: frozenset[int] = frozenset()
    wrong: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, generation_config: Mapping[str, Any], source: str = "generation_config.json"
    ) -> Self:
        """Raises OssiaError for ids that are none."""
        values, wrong = {}, {}
        for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            if (value := generation_config.get(key)) is None:
                continue
            try:
                values[key] = getattr(SamplingParams(**{key: value}), key)
            except OssiaError as error:
                wrong[key] = f"{source}: {error}"
        if generation_config.get("do_sample") is False:
            values["temperature"] = 0.0
            wrong.pop("temperature", None)
        return cls(values, text.end_of_text_ids(generation_config), wrong)

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a call, and these where it gives none. Raises OssiaError if it would need
        one that is wrong.
        """
        for key, problem in self.wrong.items():
            if key not in given:
                raise OssiaError(f"{problem}; correct the file, or give {key}")
        return {**self.sampling, **given}


@dataclass(frozen=True)
class About:
    """What a model runs on. kv_bytes: the memory for keys and values. max_length: the most tokens
    of a text, prompt and output.
    """

    folder: Path
    backend: str
    device: str
    kv_bytes: int
    max_batch: int
    max_length: int


@dataclass(frozen=True)
class Parts:
    """A driver of an engine, and the text that its ids stand for.

    tokenizer_name: the tokenizer's name in messages. about: what a model that was loaded runs on.
    expert_reads: the counters of experts that are read from disk, while the model is open.
    release: ends the other processes of a model that several share, once the driver is closed.
    """

    driver: Driver
    tokenizer: text.Tokenizer
    chat_format: text.ChatFormat
    defaults: Defaults = Defaults()
    tokenizer_name: str = "the tokenizer"
    about: About | None = None
    expert_reads: Callable[[], ExpertReads | None] = lambda: None
    release: Callable[[], object] = lambda: None

    @classmethod
    def load(
        cls, path_or_hub_name: str | Path | None, load: LoadOptions, options: EngineOptions
    ) -> Self:
        """Those of a checkpoint folder or hub name; None is the model inside the package. Raises
        OssiaError for what cannot be loaded.
        """
        checkpoint.check(load)
        folder = checkpoint.find(path_or_hub_name)
        beside = checkpoint.text_folder(folder)
        # Before the weights, so that missing files are reported at once.
        tokenizer = text.load_tokenizer(beside)
        chat_format = _load_format(beside, tokenizer)
        source = str(beside / "generation_config.json")
        generation_config = text.read_generation_config(beside)
        try:
            defaults = Defaults.of(generation_config, source)
        except OssiaError as error:
            raise OssiaError(f"{source}: {error}") from error
        draft = _find_draft(options.speculate, tokenizer)
        leader, release = None, None
        if load.devices > 1:
            decoder, leader, release = lead(folder, load)
        else:
            more = checkpoint.stored_bytes(draft) if draft else 0
            placement = checkpoint.fit(
                folder, load, lambda *model: Beside(*room(options, *model), more)
            )
            options = _with_keys(options, placement)
            decoder = checkpoint.load(folder, load, placement)
        smaller = draft and checkpoint.load(
            draft,
            replace(
                load, device=str(decoder.device), expert_memory=None, devices=1, activations=None
            ),
        )
        engine = Engine(decoder, options, draft=smaller, leader=leader)
        driver = Driver(engine, options.max_queue)
        name = f"{folder}: the tokenizer"
        about = About(
            folder,
            decoder.ops.name,
            str(decoder.device),
            engine.kv_bytes,
            engine.max_batch,
            engine.max_length,
        )
        reads = _reads(store_of(decoder))
        parts = cls(driver, tokenizer, chat_format, defaults, name, about, reads)
        return parts if release is None else replace(parts, release=release)


def _with_keys(options: EngineOptions, placement: Placement) -> EngineOptions:
    """The room for keys and values that was left where experts made way for them. Where hardly any
    was, because the user chose which do, the engine finds some.
    """
    if not placement.on_host or options.kv_memory is not None or placement.keys < _LEAST_KEYS:
        return options
    return replace(options, kv_memory=placement.keys)


def _find_draft(name: str | None, tokenizer: text.Tokenizer) -> Path | None:
    """The folder of the draft model that is named. Raises OssiaError if its tokens are others."""
    if name is None or name == "ngram":
        return None
    folder = checkpoint.find(name)
    if not text.load_tokenizer(checkpoint.text_folder(folder)).is_like(tokenizer):
        raise OssiaError(
            f"{name} cannot draft for this model: its tokenizer gives other ids to the same tokens"
        )
    return folder


def _load_format(folder: Path, tokenizer: text.Tokenizer) -> text.ChatFormat:
    """The chat format; one that refuses every chat if its template cannot be compiled."""
    try:
        return text.load_format(folder, tokenizer)
    except text.BrokenTemplate as error:
        return text.UnusableFormat(error)


def _reads(store: ExpertStore | None) -> Callable[[], ExpertReads | None]:
    """The counters of a store of experts, without keeping its memory."""
    if store is None:
        return lambda: None
    reference = weakref.ref(store)
    return lambda: None if (found := reference()) is None else found.reads
