"""Chooses a checkpoint's chat format: harmony by its vocabulary, else its template, else none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from ossia.errors import OssiaError
from ossia.system.files import read_json
from ossia.text.chat import (
    Chat,
    ChatFormat,
    ChatSettings,
    Messages,
    Parser,
    ToolDescription,
    Turn,
)
from ossia.text.constrain import Grammar
from ossia.text.harmony.format import HarmonyFormat
from ossia.text.harmony.grammar import ControlToken
from ossia.text.plain import PlainFormat
from ossia.text.template import DEFAULT, TemplateFormat
from ossia.text.tokenizer import END_OF_TEXT, Tokenizer


def load_format(folder: str | Path, tokenizer: Tokenizer) -> ChatFormat:
    """The chat format of a checkpoint folder.

    It is harmony if the vocabulary has harmony's control tokens, even beside a template, because
    the hub's template for gpt-oss differs from harmony. Else it is chat_template.jinja, with the
    named templates of additional_chat_templates/, or `chat_template` of tokenizer_config.json, one
    template or several; else plain continuation. The ids that end a reply are the `eos_token_id` of
    generation_config.json, else of config.json, the `eos_token` of tokenizer_config.json, and what
    the template ends a reply with. Raises OssiaError that names a file that cannot be read, and
    BrokenTemplate for a template that cannot be compiled.
    """
    folder = Path(folder)
    if all(name in tokenizer.control for name in ControlToken):
        return HarmonyFormat(tokenizer)
    settings = _read_config(folder / "tokenizer_config.json")
    special = _special_tokens(folder, settings, tokenizer)
    stop_ids = set(_stop_ids(folder))
    if (end := tokenizer.control.get(special.get("eos_token", ""))) is not None:
        stop_ids.add(end)
    templates, source = _template_files(folder)
    if not templates:
        source = f"{folder / 'tokenizer_config.json'}: chat_template"
        templates = _named_templates(settings.get("chat_template"), source)
    if not templates:
        if END_OF_TEXT in tokenizer.control:
            stop_ids.add(tokenizer.control[END_OF_TEXT])
        return PlainFormat(tokenizer, stop_ids=stop_ids)
    return TemplateFormat(templates, tokenizer, stop_ids=stop_ids, variables=special, source=source)


class UnusableFormat:
    """Stands for a template that cannot be compiled: it refuses every chat by that `error`, and the
    model can still continue text.
    """

    name = "unusable"
    stop_ids: frozenset[int] = frozenset()

    def __init__(self, error: OssiaError):
        self.error = error

    def render(self, _chat: Chat | Messages, **_settings: Unpack[ChatSettings]) -> list[int]:
        """See ChatFormat.render."""
        raise OssiaError(str(self.error))

    def render_turns(self, _chat: Chat, _only: Collection[int] | None = None) -> list[Turn]:
        """See ChatFormat.render_turns."""
        raise OssiaError(str(self.error))

    def grammar(self, _chat: Chat, _prompt: Sequence[int], /) -> Grammar | None:
        """See ChatFormat.grammar."""
        raise OssiaError(str(self.error))

    def parser(
        self, _prompt: Sequence[int] = (), _tools: Sequence[ToolDescription] = (), /
    ) -> Parser:
        """See ChatFormat.parser."""
        raise OssiaError(str(self.error))


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint folder's generation_config.json; empty without the file."""
    return _read_config(folder / "generation_config.json")


def end_of_text_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end a text, from the `eos_token_id` (an id or a list of ids) of a
    generation_config.json or config.json; empty without the key. Raises OssiaError for anything
    else under the key.
    """
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id) is int and id >= 0 for id in ids):
        raise OssiaError(f"eos_token_id must be an id or a list of ids, not {value!r}")
    return frozenset(ids)


def _stop_ids(folder: Path) -> frozenset[int]:
    """The ids that end a text, from the first file that names any."""
    for name in ("generation_config.json", "config.json"):
        config = _read_config(folder / name)
        try:
            if ids := end_of_text_ids(config):
                return ids
        except OssiaError as error:
            raise OssiaError(f"{folder / name}: {error}") from error
    return frozenset()


def special_tokens(folder: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """The names of a checkpoint's special tokens by their roles, such as `bos_token`."""
    return _special_tokens(folder, _read_config(folder / "tokenizer_config.json"), tokenizer)


def _special_tokens(folder: Path, settings: dict[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens, such as `bos_token`; each is a string, or an object with `content`.

    special_tokens_map.json counts where tokenizer_config.json does not list the added tokens, and
    the classes of GPT-2 and Qwen have <|endoftext|> for what neither file names.
    """
    special: dict[str, str] = {}
    kind = str(settings.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if END_OF_TEXT in tokenizer.control and kind in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        names = ("eos_token", "unk_token", "bos_token" if kind[0] == "G" else "pad_token")
        special = dict.fromkeys(names, END_OF_TEXT)
    if "added_tokens_decoder" not in settings:
        settings = {**settings, **_read_config(folder / "special_tokens_map.json")}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = value.get("content")
        if key.endswith("_token") and isinstance(value, str):
            special[key] = value
        elif key in special and value is None:
            del special[key]
    return special


def _template_files(folder: Path) -> tuple[dict[str, str], str]:
    """The templates in files of their own, by name, and how errors call them."""
    file, others = folder / "chat_template.jinja", folder / "additional_chat_templates"
    templates = {other.stem: _read_text(other) for other in sorted(others.glob("*.jinja"))}
    if file.is_file():
        templates[DEFAULT] = _read_text(file)
    return templates, str(file if file.is_file() else others)


def _named_templates(value: Any, source: str) -> dict[str, str]:
    """The templates by name: one is the default, several are a list or an object."""
    if value is None or isinstance(value, str):
        return {} if value is None else {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if not isinstance(value, dict) or not all(
        isinstance(item, str) for pair in value.items() for item in pair
    ):
        raise OssiaError(f"{source} must be a template or a list of named ones, not {value!r}")
    return value


def _read_config(file: Path) -> dict[str, Any]:
    """The object in a file; empty without the file."""
    return read_json(file) if file.is_file() else {}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OssiaError(f"{file}: cannot be read ({error})") from error
