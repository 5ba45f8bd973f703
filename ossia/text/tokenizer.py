"""Text to ids and back by byte-level BPE. Text never becomes a control token."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ossia.errors import OssiaError
from ossia.text import bounds

END_OF_TEXT = "<|endoftext|>"


def _byte_of_symbol() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's
    `bytes_to_unicode`).

    Bytes that print stand for themselves; the others take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {chr(byte): byte for byte in printable}
    return symbols | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF_SYMBOL = _byte_of_symbol()


class Tokenizer:
    """A vocabulary over the `tokenizers` library. It is immutable, so that requests can share it.

    `control` maps the name of each added token to its id, whether the file calls it special or not
    (Qwen's `<think>` and `<tool_call>` are not). `encode` never yields one of them;
    `encode_control` does, and callers may look them up.
    """

    def __init__(self, inner: tokenizers.Tokenizer):
        added = inner.get_added_tokens_decoder().values()
        # `encode_special_tokens` makes the library read special tokens in a text as ordinary text.
        # It covers added tokens only if they are special.
        inner.add_special_tokens(
            [tokenizers.AddedToken(token.content, special=True) for token in added]
        )
        inner.encode_special_tokens = True
        self._inner = inner
        self.control: dict[str, int] = {
            token.content: id for id, token in inner.get_added_tokens_decoder().items()
        }
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self._bytes: dict[int, bytes] = {id: name.encode() for name, id in self.control.items()}
        longest_first = sorted(self.control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text. '<|end|>' in it does not become a control token."""
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates, which JSON can carry: pair them, or U+FFFD
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_control(self, text: str, *, breaker: str = "") -> list[int]:
        """The ids of a trusted template's text, in which control tokens are recognised.

        `breaker` is a character that was put into untrusted text, so that no control token can form
        there; it is removed before the text between control tokens is encoded.
        """
        ids: list[int] = []
        position = 0
        for match in [*self._control_pattern.finditer(text), None]:
            piece = text[position : match.start() if match else len(text)]
            if breaker:
                piece = piece.replace(breaker, "")
            if piece:
                ids += self.encode(piece)
            if match:
                ids.append(self.control[match.group()])
                position = match.end()
        return ids

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token; the name of a control token; b'' for ids that only pad."""
        cached = self._bytes.get(id)
        if cached is None:
            symbols = self._inner.id_to_token(id) if 0 <= id < 2**32 else None
            cached = self._bytes[id] = bytes(BYTE_OF_SYMBOL[symbol] for symbol in symbols or "")
        return cached

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, with the names of control tokens, and U+FFFD for invalid UTF-8."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def stream(self) -> StreamDecoder:
        """A new decoder for ids that arrive one by one."""
        return StreamDecoder(self)


class StreamDecoder:
    """Decodes ids as they arrive. Bytes of an incomplete character wait for the rest of it."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters that `id` completes; U+FFFD for bytes that cannot become one."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        """U+FFFD if bytes were still waiting, else ''. The decoder can then be used again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder: tokenizer.json, else GPT-2's vocab.json and merges.txt.

    Raises OssiaError that names the file if it is absent or not a byte-level BPE vocabulary.
    """
    folder = Path(folder)
    file = folder / "tokenizer.json"
    if file.is_file():
        bounds.check_size(file)
        inner = _read_tokenizer_json(file)
        bounds.check(inner, str(file))
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        inner = _read_gpt2(folder / "vocab.json", folder / "merges.txt")
    else:
        raise OssiaError(
            f"{folder}: no tokenizer: needs tokenizer.json, or vocab.json and merges.txt; "
            "copy them from the model's page on the hub"
        )
    return Tokenizer(inner)


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    try:
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


def _read_gpt2(vocab_file: Path, merges_file: Path) -> tokenizers.Tokenizer:
    try:
        vocab = json.loads(vocab_file.read_text(encoding="utf-8"))
        model = models.BPE.from_file(str(vocab_file), str(merges_file))
    except Exception as error:  # the library raises nothing more specific
        raise _unreadable(f"{vocab_file} or {merges_file.name}", error) from error
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if END_OF_TEXT in vocab:
        inner.add_special_tokens([END_OF_TEXT])
    return inner


def _unreadable(file: Path | str, error: Exception) -> OssiaError:
    return OssiaError(
        f"{file}: cannot be read as a tokenizer ({error}); "
        "it may be truncated: copy it again from the model's page on the hub"
    )
