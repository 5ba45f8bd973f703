"""How many tokens a prompt may come to: one that goes far beyond is given up before its end, which
would take minutes and gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ossia.errors import OssiaError


class TooLong(OssiaError):
    """A prompt has more tokens than there is room for."""


class Room:
    """most: tokens of all texts together."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def take(self, tokens: int) -> None:
        """Count the tokens of a text. Raises TooLong if there is no room for them."""
        self.check(tokens)
        self._left -= tokens

    def check(self, tokens: int) -> None:
        """Raise TooLong if there is no room for so many."""
        if tokens > self._left:
            raise TooLong(f"the prompt has more than {self._most:,} tokens; shorten it")

    def may_hold(self, size: int) -> bool:
        """Whether so many bytes are no more than texts of the tokens that are left usually have."""
        return size <= 4 * self._left


_room: ContextVar[Room | None] = ContextVar("room", default=None)
current = _room.get


@contextmanager
def at_most(tokens: int) -> Iterator[None]:
    """Within the block, raise TooLong once texts that are encoded have more tokens together."""
    token = _room.set(Room(tokens))
    try:
        yield
    finally:
        _room.reset(token)
