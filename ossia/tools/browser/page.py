"""A page as a model reads it: lines of text in which links are 【id†text】."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol
from urllib.parse import urlsplit

_WIDTH = 80  # characters of a line
_PIECE = 100 * _WIDTH  # a longer line is wrapped in pieces, in linear time
_wrapper = textwrap.TextWrapper(_WIDTH, replace_whitespace=False, drop_whitespace=False)
_MARKS = str.maketrans({"【": "〖", "】": "〗", "\u200b": ""})
_LINK = re.compile(r"【\d+†(?P<text>[^†】]+)(?:†[^†】]+)?】")
_LINK_CUT_BEFORE = re.compile(r"\A[^【】]*】")
_LINK_CUT_AFTER = re.compile(r"【\d*(?:†(?P<text>[^†】]*)(?:†[^†】]*)?)?\Z")
_TOO_LONG = 1024  # characters of an address or a message that is shown


@dataclass(frozen=True)
class Page:
    """urls: where each link leads, by its id. places: the line that each link of a page of results
    leads to; None for any other page.
    """

    url: str
    title: str
    text: str
    urls: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, int] | None = None

    @cached_property
    def lines(self) -> list[str]:
        """The text, wrapped."""
        return wrapped(self.text)


class Backend(Protocol):
    """Where pages come from. Its methods may block, and raise OssiaError for what cannot be had."""

    @property
    def source(self) -> str:
        """What the pages are, in a word, for the model."""
        ...

    def search(self, query: str, most: int) -> Page:
        """A page of results: links to pages, in the order of their relevance."""
        ...

    def fetch(self, url: str) -> Page:
        """The page at an address that a link gave, or that the model wrote; with `SOURCE` before
        it, as it was written.
        """
        ...


SOURCE = "view-source:"


class Links:
    """Numbers the links of a page, each address once."""

    def __init__(self, domain: str = "") -> None:
        self.urls: dict[str, str] = {}
        self._domain, self._ids = domain, dict[str, str]()

    def mark(self, url: str, text: str) -> str:
        """The link as it stands in the page's text. Of another domain, it names that."""
        id = self._ids.setdefault(url, str(len(self._ids)))
        self.urls[id] = url
        text, domain = text.replace("†", "‡"), urlsplit(url).netloc
        return f"【{id}†{text}†{domain}】" if domain != self._domain else f"【{id}†{text}】"


def without_marks(text: str) -> str:
    """The text without the characters that mark links."""
    return text.translate(_MARKS)


def without_links(text: str) -> str:
    """The text with what links say in their places."""
    text = _LINK_CUT_BEFORE.sub("", text)
    text = _LINK_CUT_AFTER.sub(lambda match: match["text"] or "", text)
    return _LINK.sub(lambda match: match["text"], text)


def wrapped(text: str) -> list[str]:
    """The lines of a text, the long ones in several."""
    lines: list[str] = []
    for line in text.split("\n"):
        for n in range(0, max(1, len(line)), _PIECE):
            lines += _wrapper.wrap(line[n : n + _PIECE]) or [""]
    return lines


def shortened(text: str) -> str:
    """An address or a message that is not too long to show."""
    return text if len(text) <= _TOO_LONG else f"{text[: _TOO_LONG - 3]}..."
