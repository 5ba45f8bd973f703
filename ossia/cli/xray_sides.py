"""What `ossia xray` looks at: a model, a text, and what a comparison changes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossia.errors import OssiaError
from ossia.options import LoadOptions
from ossia.system.files import json_object

if TYPE_CHECKING:
    from ossia.insight.xray import Xray, XrayOptions
    from ossia.insight.xray.subject import Subject
    from ossia.model import Decoder
    from ossia.text import Tokenizer

_KEYS = "sinks=off, windows=off, dense=int8, effort=low|medium|high, text=..., file=..."


@dataclass(frozen=True)
class Source:
    """The text: plain, or a conversation with the settings of `Chat.of`. reply: up to how many
    tokens the model continues it by.
    """

    plain: str | None = None
    chat: dict[str, Any] | None = None
    reply: int = 0


@dataclass(frozen=True)
class Side:
    """One of the x-rays. without: "sinks" and "windows" that are off. label: what is changed."""

    model: str | None
    load: LoadOptions
    source: Source
    without: tuple[str, ...] = ()
    label: str = ""

    def changed(self, changes: Sequence[str]) -> Side:
        """As this one but for the changes of --compare. Raises OssiaError for what is none."""
        side, labels = self, []
        for change in changes:
            key, found, value = change.partition("=")
            if not found or Path(change).exists():
                if side.model != self.model:
                    raise OssiaError("--compare takes one other model")
                side = replace(side, model=change)
                continue
            side = _with(side, key, value, change)
            labels.append(key if key in ("text", "file") else change)
        return replace(side, label=", ".join(labels))


def _with(side: Side, key: str, value: str, change: str) -> Side:
    source = side.source
    match key, value:
        case ("sinks" | "windows", "off"):
            return replace(side, without=(*side.without, key))
        case ("dense", "int8"):
            return replace(side, load=replace(side.load, dense="int8"))
        case ("effort", "low" | "medium" | "high"):
            if source.chat is None:
                raise OssiaError(f"--compare {change}: only a chat has an effort; give --messages")
            return replace(
                side, source=replace(source, chat={**source.chat, "reasoning_effort": value})
            )
        case ("text", _) if value:
            return replace(side, source=replace(source, plain=value, chat=None))
        case ("file", _) if value:
            return replace(side, source=replace(source, plain=read_text(Path(value)), chat=None))
    raise OssiaError(f"--compare {change}: give another model, or one of {_KEYS}")


def read_text(path: Path) -> str:
    """The text of a file. Raises OssiaError if it is not UTF-8, and OSError."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise OssiaError(
            f"{path} is not text in UTF-8: {error.reason} at byte {error.start}"
        ) from error


def read_messages(path: Path, effort: str | None) -> dict[str, Any]:
    """The settings of `Chat.of` in a JSON file. Raises OssiaError for another, and OSError."""
    data = path.read_bytes()
    if data.lstrip()[:1] == b"[":  # the messages by themselves
        data = b'{"messages": ' + data + b"}"
    found = json_object(data, str(path))
    if "messages" not in found:
        raise OssiaError(f"{path}: give a list of messages, or an object with messages")
    known = (
        "messages",
        "tools",
        "tool_choice",
        "reasoning_effort",
        "thinking",
        "date",
        "instructions",
    )
    chat = {key: found[key] for key in known if key in found}
    return chat if effort is None else {**chat, "reasoning_effort": effort}


@dataclass
class Looker:
    """Looks at sides; each model is loaded once. progress: is called with what is done next."""

    progress: Callable[[str], None]
    _loaded: dict[tuple[str | None, LoadOptions], tuple[Path, Decoder]] = field(
        default_factory=dict
    )

    def look(self, side: Side, options: XrayOptions) -> tuple[Xray, Subject]:
        """Raises OssiaError for a model or a text that cannot be read."""
        from ossia import checkpoint, text
        from ossia.insight.xray import examine

        folder, decoder = self._open(side)
        tokenizer = text.load_tokenizer(checkpoint.text_folder(folder))
        ids = self._ids(side, decoder, tokenizer)
        found = examine(_without(decoder, side.without), ids, options, self.progress)
        return found, _subject(side, folder, found, tokenizer)

    def _open(self, side: Side) -> tuple[Path, Decoder]:
        key = side.model, side.load
        if key not in self._loaded:
            from ossia import checkpoint

            checkpoint.check(side.load)
            folder = checkpoint.find(side.model)
            self.progress(f"loading {folder.name}")
            self._loaded[key] = folder, checkpoint.load(folder, side.load)
        return self._loaded[key]

    def _ids(self, side: Side, decoder: Decoder, tokenizer: Tokenizer) -> list[int]:
        """The text's tokens, with the reply that is asked for."""
        from ossia import checkpoint, text

        source, beside = side.source, checkpoint.text_folder(self._open(side)[0])
        stops = frozenset(decoder.config.eos_ids)
        if source.chat is None:
            ids = tokenizer.encode(source.plain or "")
        else:
            chat_format = text.load_format(beside, tokenizer)
            ids = _rendered(chat_format, source.chat)
            stops |= chat_format.stop_ids
        if not source.reply or not ids:
            return ids
        from ossia.engine import Engine, Request, SamplingParams

        self.progress("continuing the text")
        params = SamplingParams(temperature=0.0, max_tokens=source.reply, stop_ids=stops)
        (result,) = Engine(decoder).generate([Request(ids, params)])
        return [*ids, *result.tokens]


def _rendered(chat_format: Any, settings: dict[str, Any]) -> list[int]:
    """The prompt of a conversation, or the prompt and the reply if it ends with one."""
    from ossia.text import Chat
    from ossia.text.chat import Role

    chat = Chat.of(settings["messages"], **{k: v for k, v in settings.items() if k != "messages"})
    last = len(chat.messages) - 1
    if last >= 0 and chat.messages[last].role is Role.ASSISTANT:
        prompt, reply = chat_format.render_turns(chat, {last})[-1]
        return [*prompt, *reply]
    return chat_format.render(chat)


def _without(decoder: Decoder, parts: Sequence[str]) -> Decoder:
    """The decoder over the same weights, without sinks or windows."""
    from ossia.insight.xray.effects import without_sinks, without_windows

    config = decoder.config
    for part in parts:
        config = without_sinks(config) if part == "sinks" else without_windows(config)
    return decoder if config is decoder.config else decoder.on(decoder.ops, config)


def _subject(side: Side, folder: Path, found: Xray, tokenizer: Tokenizer) -> Subject:
    from ossia.insight import describe
    from ossia.insight.xray.subject import Subject

    stream = tokenizer.stream()
    pieces = [stream.push(id) for id in found.trace.tokens.tolist()]
    pieces[-1] += stream.finish()
    config = found.decoder.config
    about = tuple(describe.described(describe.Subject(folder.name, config)))
    name = f"{folder.name}, {side.label}" if side.label else folder.name

    def word(id: int) -> str:
        data = tokenizer.token_bytes(id)
        try:
            return data.decode()
        except UnicodeDecodeError:  # a part of a character
            return "".join(f"\\x{byte:02x}" for byte in data)

    return Subject(name, about, found.trace, tuple(pieces), word)
