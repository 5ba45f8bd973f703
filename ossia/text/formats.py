"""Chooses a checkpoint's chat format: harmony by its vocabulary, else its template, else none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError
from ossia.system.files import read_json
from ossia.text.chat import ChatFormat
from ossia.text.harmony.format import HarmonyFormat
from ossia.text.harmony.grammar import ControlToken
from ossia.text.plain import PlainFormat
from ossia.text.template import TemplateFormat
from ossia.text.tokenizer import END_OF_TEXT, Tokenizer


def load_format(folder: str | Path, tokenizer: Tokenizer) -> ChatFormat:
    """The chat format of a checkpoint folder.

    It is harmony if the vocabulary has harmony's control tokens, even beside a template, because
    the hub's template for gpt-oss differs from harmony. Else it is chat_template.jinja, or
    `chat_template` of tokenizer_config.json; else plain continuation. The ids that end a reply are
    the `eos_token_id` of generation_config.json, else of config.json, and the `eos_token` of
    tokenizer_config.json. Raises OssiaError that names a file that cannot be read.
    """
    folder = Path(folder)
    if all(name in tokenizer.control for name in ControlToken):
        return HarmonyFormat(tokenizer)
    settings = _read_config(folder / "tokenizer_config.json")
    special = _special_tokens(settings)
    stop_ids = set(_stop_ids(folder))
    if (end := tokenizer.control.get(special.get("eos_token", ""))) is not None:
        stop_ids.add(end)
    file = folder / "chat_template.jinja"
    if file.is_file():
        template, source = _read_text(file), str(file)
    else:
        source = f"{folder / 'tokenizer_config.json'}: chat_template"
        template = _default_template(settings.get("chat_template"), source)
    if template is None:
        if END_OF_TEXT in tokenizer.control:
            stop_ids.add(tokenizer.control[END_OF_TEXT])
        return PlainFormat(tokenizer, stop_ids=stop_ids)
    return TemplateFormat(template, tokenizer, stop_ids=stop_ids, variables=special, source=source)


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
        try:
            if ids := end_of_text_ids(_read_config(folder / name)):
                return ids
        except OssiaError as error:
            raise OssiaError(f"{folder / name}: {error}") from error
    return frozenset()


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens, such as `bos_token`; each is a string, or an object with `content`."""
    special = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = value.get("content")
        if key.endswith("_token") and isinstance(value, str):
            special[key] = value
    return special


def _default_template(value: Any, source: str) -> str | None:
    """The template, or the one named default of several; None if there is none."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = next(
            (item.get("template") for item in value if item.get("name") == "default"), None
        )
    if value is not None and not isinstance(value, str):
        raise OssiaError(f"{source} must be a template or a list of named ones, not {value!r}")
    return value


def _read_config(file: Path) -> dict[str, Any]:
    """The object in a file; empty without the file."""
    return read_json(file) if file.is_file() else {}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OssiaError(f"{file}: cannot be read ({error})") from error
