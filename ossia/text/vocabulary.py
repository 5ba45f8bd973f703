"""A checkpoint's vocabulary, put together from its files as transformers does it: the base of
tokenizer.json or of vocab.json and merges.txt, then the added tokens and settings beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ossia.errors import OssiaError
from ossia.system.files import read_json
from ossia.text import bounds

END_OF_TEXT = "<|endoftext|>"

# Both are classes of transformers; each splits text in its own way, which vocab.json does not say.
GPT2, QWEN = "GPT2Tokenizer", "Qwen2Tokenizer"
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARK = b"\xef\xbb\xbf"  # with which some editors begin a UTF-8 file
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read(folder: Path) -> tokenizers.Tokenizer:
    """The vocabulary of a checkpoint folder.

    Raises OssiaError that names the file if one is absent, unreadable, or not a byte-level BPE
    vocabulary.
    """
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    file = folder / "tokenizer.json"
    if file.is_file():
        bounds.check_size(file)
        inner = _read_tokenizer_json(file)
        bounds.check(inner, str(file))
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        inner = _read_vocab_and_merges(folder, class_of(settings))
    else:
        raise OssiaError(
            f"{folder}: no tokenizer: needs tokenizer.json, or vocab.json and merges.txt; "
            "copy them from the model's page on the hub"
        )
    _set_prefix_space(inner, settings)
    _add_tokens(inner, folder, settings)
    return inner


def class_of(settings: dict[str, Any]) -> str | None:
    """The class that a tokenizer_config.json names, without the ending of its fast variant."""
    name = settings.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else None


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    try:
        with file.open("rb") as opened:
            marked = opened.read(len(_MARK)) == _MARK
        if marked:
            inner = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8-sig"))
        else:
            inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise _unreadable(file, error) from error
    if not isinstance(inner.model, models.BPE) or not isinstance(inner.decoder, decoders.ByteLevel):
        raise OssiaError(
            f"{file}: not a byte-level BPE tokenizer, the only kind of GPT-2, Qwen3 and gpt-oss"
        )
    inner.no_truncation()
    inner.no_padding()
    return inner


def _read_vocab_and_merges(folder: Path, kind: str | None) -> tokenizers.Tokenizer:
    try:
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8-sig"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8-sig").split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and line[:8] != "#version"]
        inner = tokenizers.Tokenizer(models.BPE(vocab, merges))  # type: ignore[arg-type]
    except Exception as error:  # the library raises nothing more specific
        raise _unreadable(f"{folder / 'vocab.json'} or merges.txt", error) from error
    if kind == QWEN:
        split = pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.normalizer = normalizers.NFC()  # type: ignore[assignment]
        inner.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])  # type: ignore[assignment]
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if END_OF_TEXT in vocab:
        inner.add_special_tokens([END_OF_TEXT])
    return inner


def _set_prefix_space(inner: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """Whether text begins with a space that it does not have: as tokenizer_config.json says, else
    not with the classes of GPT-2 and Qwen, else as tokenizer.json says.
    """
    wanted = settings.get("add_prefix_space")
    if wanted is None and class_of(settings) in (GPT2, QWEN):
        wanted = False
    if isinstance(wanted, bool):
        for step in _steps(inner.pre_tokenizer):
            if isinstance(step, pre_tokenizers.ByteLevel):
                step.add_prefix_space = wanted


def _steps(pre_tokenizer: Any) -> Iterator[Any]:
    if isinstance(pre_tokenizer, pre_tokenizers.Sequence):
        for step in pre_tokenizer:  # type: ignore[attr-defined]
            yield from _steps(step)
    elif pre_tokenizer is not None:
        yield pre_tokenizer


def _add_tokens(inner: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    """Add what the files beside tokenizer.json add. The library gives new tokens the next ids."""
    file = folder / "tokenizer_config.json"
    named = list(_named(settings, file))
    if "added_tokens_decoder" in settings:
        listed = _listed(settings["added_tokens_decoder"], file)
    else:  # the files of older versions
        map_file = folder / "special_tokens_map.json"
        if map_file.is_file():
            named += _named(read_json(map_file), map_file)
        listed = _added_tokens_file(folder / "added_tokens.json", {str(token) for token in named})
    inner.add_tokens(listed)
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    flags = {token.content: token for token in listed}
    inner.add_special_tokens(
        [flags.get(token.content, token) for token in named if token.content not in known]
    )


def _listed(value: Any, file: Path) -> list[AddedToken]:
    """The tokens of `added_tokens_decoder`, in the order of their ids."""
    try:
        return [_token(token) for _, token in sorted((int(id), t) for id, t in value.items())]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OssiaError(
            f"{file}: added_tokens_decoder must be an object of tokens by id ({error})"
        ) from error


def _added_tokens_file(file: Path, special: set[str]) -> list[AddedToken]:
    """The tokens of added_tokens.json, in the order of their ids."""
    ids = read_json(file) if file.is_file() else {}
    if not all(type(id) is int for id in ids.values()):
        raise OssiaError(f"{file}: must be an object of ids by token")
    return [
        AddedToken(name, normalized=name not in special, special=name in special)
        for name in sorted(ids, key=lambda name: ids[name])
    ]


def _named(settings: dict[str, Any], file: Path) -> Iterator[AddedToken]:
    """The special tokens by name, such as `eos_token`, and those without."""
    values: list[Any] = [value for key, value in settings.items() if key.endswith("_token")]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        more = settings.get(key) or ()
        values += more.values() if isinstance(more, dict) else more
    try:
        yield from (_token(value, special=True) for value in values if value)
    except (KeyError, TypeError, ValueError) as error:
        raise OssiaError(f"{file}: a special token must be a string or an object") from error


def _token(value: Any, **flags: bool) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, **flags)
    given = {name: value[name] for name in _FLAGS if name in value}
    return AddedToken(value["content"], **{**given, **flags})


def _unreadable(file: Path | str, error: Exception) -> OssiaError:
    return OssiaError(
        f"{file}: cannot be read as a tokenizer ({error}); "
        "it may be truncated: copy it again from the model's page on the hub"
    )
