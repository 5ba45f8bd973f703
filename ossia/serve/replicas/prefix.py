"""How prompts begin: a digest of each block of a request's text, and the blocks that a replica has
read before.

The text is the request's JSON, not its tokens, so that a request is routed without a tokenizer. Two
requests whose texts begin alike have prompts that begin alike, as far as blocks can tell.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

BLOCK = 128  # bytes: some 32 tokens
MOST_BLOCKS = 8192  # of a text; how it goes on after a mebibyte does not matter
BYTES_PER_TOKEN = 4

# What chat templates put before the messages, and so what a prompt begins with.
_BEFORE = (
    "tools",
    "system",
    "instructions",
    "reasoning",
    "reasoning_effort",
    "thinking",
    "output_config",
    "chat_template_kwargs",
    "response_format",
    "text",
    "structured_outputs",
)
_TEXTS = ("messages", "input", "prompt")

Chain = Sequence[bytes]


def chain(body: Mapping[str, Any], earlier: Chain = ()) -> Chain:
    """A digest of each whole block of a request's text, and of all that stands before it. earlier:
    the chain of the request whose conversation it goes on with by an id.
    """
    digests, rest = [*earlier], b""
    digest = digests[-1] if digests else b""
    for part in _parts(body, first=not earlier):
        rest += part
        while len(rest) >= BLOCK:
            if len(digests) >= MOST_BLOCKS:
                return digests
            digest = hashlib.blake2b(digest + rest[:BLOCK], digest_size=8).digest()
            digests.append(digest)
            rest = rest[BLOCK:]
    return digests


def _parts(body: Mapping[str, Any], first: bool) -> Iterator[bytes]:
    """The text in pieces of at most some kilobytes."""
    if first:
        yield from _sliced({name: body[name] for name in _BEFORE if body.get(name) is not None})
    text = next((body[name] for name in _TEXTS if body.get(name) is not None), None)
    if isinstance(text, list) and not all(isinstance(part, int) for part in text[:2]):
        for part in text:
            yield from _sliced(part)
    else:  # ids one by one would take seconds
        yield from _sliced(text)


def _sliced(value: Any) -> Iterator[bytes]:
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    except RecursionError:  # which a replica refuses
        return
    for begin in range(0, len(text), 16 * BLOCK):
        yield text[begin : begin + 16 * BLOCK]


class Known:
    """The blocks that a replica has read, of which those go first that were used least recently,
    as in the replica's own cache.
    """

    def __init__(self, most: int = 1 << 16) -> None:
        self.most = most
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def match(self, chain: Chain, others: Container[bytes] = ()) -> int:
        """How many blocks at the beginning are known, or among others."""
        return sum(1 for _ in takewhile(lambda one: one in self._blocks or one in others, chain))

    def add(self, chain: Chain) -> None:
        """Note a text that was read. Its end is forgotten before its beginning."""
        for digest in reversed(chain[: self.most]):
            self._blocks[digest] = None
            self._blocks.move_to_end(digest)
        while len(self._blocks) > self.most:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        self._blocks.clear()
