"""Text to ids and back by byte-level BPE. Text never becomes a control token."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

import tokenizers

from ossia.text import room, vocabulary

END_OF_TEXT = vocabulary.END_OF_TEXT
# Characters that are encoded in milliseconds. More go to the library's function for batches, which
# alone lets other threads run meanwhile.
_AT_ONCE = 2**14
_PART = 2**16  # characters of a long text that are counted before the next are
# Around reasoning, calls and results: from the user they are text, though no file calls them so.
_TAGS = frozenset(
    f"<{end}{tag}>" for tag in ("think", "tool_call", "tool_response") for end in ("", "/")
)


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


def well_formed(text: str) -> str:
    """The text with its surrogates paired, and U+FFFD for those that stand alone, as in JSON they
    can.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Tokenizer:
    """A vocabulary over the `tokenizers` library. It is immutable, so that requests can share it.

    `control` maps the name of each control token to its id: of the added tokens those that the file
    calls special, and the tags of reasoning and of tools, which Qwen does not call so. `encode`
    never yields one of them; `encode_control` does, and callers may look them up. Any other added
    token is a word: part of ordinary text in both directions, as in the library.
    """

    def __init__(self, inner: tokenizers.Tokenizer):
        added = inner.get_added_tokens_decoder()
        control = {id: t for id, t in added.items() if t.special or t.content in _TAGS}
        # `encode_special_tokens` makes the library read special tokens in a text as ordinary text.
        # It covers added tokens only if they are special.
        inner.add_special_tokens(
            [tokenizers.AddedToken(token.content, special=True) for token in control.values()]
        )
        inner.encode_special_tokens = True
        self._inner = inner
        self.control: dict[str, int] = {token.content: id for id, token in control.items()}
        # Those that the file calls special, which decoders such as transformers' can leave out.
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self._bytes: dict[int, bytes] = {id: token.content.encode() for id, token in added.items()}
        longest_first = sorted(control.values(), key=lambda token: len(token.content), reverse=True)
        self._control_pattern = re.compile("|".join(map(_pattern, longest_first)) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text. '<|end|>' in it does not become a control token. Raises TooLong
        for more than `room` holds.
        """
        text = well_formed(text)
        left = room.current()
        if left is not None and not left.may_hold(len(text.encode())):
            self._measure(text, left)
        ids = self._encoding(text).ids
        if left is not None:
            left.take(len(ids))
        return ids

    def _encoding(self, text: str) -> tokenizers.Encoding:
        if len(text) <= _AT_ONCE:
            return self._inner.encode(text, add_special_tokens=False)
        return self._inner.encode_batch_fast([text], add_special_tokens=False)[0]

    def _measure(self, text: str, left: room.Room) -> None:
        """Raise TooLong if a long text has more tokens than are left. Of its parts no more are
        encoded than that takes; where it is cut makes a difference of a few tokens.
        """
        count = 0
        for begin in range(0, len(text), _PART):
            count += len(self._encoding(text[begin : begin + _PART]))
            left.check(count)

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
                ids.append(self.control[match[match.lastindex or 0]])
                position = match.end()
        return ids

    @property
    def prefix(self) -> list[int]:
        """The ids that the file puts before every text, such as a BOS token; usually none."""
        return self._inner.encode("").ids

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

    def is_like(self, other: Tokenizer) -> bool:
        """Whether both give the same ids to the same tokens."""
        return self._inner.get_vocab(True) == other._inner.get_vocab(True)

    def stream(self) -> StreamDecoder:
        """A new decoder for ids that arrive one by one."""
        return StreamDecoder(self)


def _pattern(token: tokenizers.AddedToken) -> str:
    """Where the library would recognise a token; its name is a group of its own."""
    name = f"({re.escape(token.content)})"
    if token.single_word:
        name = rf"(?<!\w){name}(?!\w)"
    return (r"\s*" if token.lstrip else "") + name + (r"\s*" if token.rstrip else "")


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
    """The tokenizer of a checkpoint folder (`vocabulary.read`)."""
    return Tokenizer(vocabulary.read(Path(folder)))
