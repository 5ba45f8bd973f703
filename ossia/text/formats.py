"""Which chat format a folder speaks: harmony by its vocabulary, its own template, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError
from ossia.text.chat import ChatFormat
from ossia.text.harmony import HarmonyFormat
from ossia.text.harmony_render import CONTROL_TOKENS
from ossia.text.plain import PlainFormat
from ossia.text.template import TemplateFormat
from ossia.text.tokenizer import GPT2_END_OF_TEXT, Tokenizer


def load_format(folder: str | Path, tokenizer: Tokenizer) -> ChatFormat:
    """The chat format of a checkpoint folder.

    A vocabulary with harmony's control tokens speaks harmony, even beside a template: the hub's
    template for gpt-oss differs from harmony. Else chat_template.jinja, or `chat_template` of
    tokenizer_config.json; else plain continuation. Ids that end a reply come from
    generation_config.json, else config.json (`eos_token_id`), and from tokenizer_config.json
    (`eos_token`). Raises OssiaError naming a file that cannot be read.
    """
    folder = Path(folder)
    if all(name in tokenizer.control for name in CONTROL_TOKENS):
        return HarmonyFormat(tokenizer)
    settings = _read_json(folder / "tokenizer_config.json")
    special = _special_tokens(settings)
    stop_ids = _eos_ids(folder)
    if (end := tokenizer.control.get(special.get("eos_token", ""))) is not None:
        stop_ids.add(end)
    file = folder / "chat_template.jinja"
    if file.is_file():
        template, source = _read_text(file), str(file)
    else:
        source = f"{folder / 'tokenizer_config.json'}: chat_template"
        template = _default_template(settings.get("chat_template"), source)
    if template is None:
        if GPT2_END_OF_TEXT in tokenizer.control:
            stop_ids.add(tokenizer.control[GPT2_END_OF_TEXT])
        return PlainFormat(tokenizer, stop_ids=stop_ids)
    return TemplateFormat(template, tokenizer, stop_ids=stop_ids, variables=special, source=source)


def _eos_ids(folder: Path) -> set[int]:
    """`eos_token_id` of the first file that has one: a number, or a list of them."""
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(id, int) for id in ids):
            raise OssiaError(f"{folder / name}: eos_token_id must be an id or a list of ids")
        return set(ids)
    return set()


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and the like: a string, or an object with `content`."""
    special = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = value.get("content")
        if key.endswith("_token") and isinstance(value, str):
            special[key] = value
    return special


def _default_template(value: Any, source: str) -> str | None:
    """A template, or the one called default of several; None if there is none."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = next(
            (item.get("template") for item in value if item.get("name") == "default"), None
        )
    if value is not None and not isinstance(value, str):
        raise OssiaError(f"{source} must be a template or a list of named ones, not {value!r}")
    return value


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(_read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise OssiaError(f"{file}: not JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise OssiaError(f"{file}: must hold a JSON object")
    return value


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OssiaError(f"{file}: cannot be read ({error})") from error
