"""Markdown and HTML as the text of a page."""

from __future__ import annotations

import posixpath
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urlsplit

from ossia.tools.browser.page import Links, Page, without_marks

# Repetitions are bounded, so that no file takes long.
_TARGET = r"\(<?(?P<url>[^()\s<>]{1,2000})>?(?:[ \t]{1,9}\"[^\"\n]{0,500}\")?\)"
_IMAGE = re.compile(r"!\[(?P<text>[^\]\n]{0,500})\]" + _TARGET)
_LINK = re.compile(r"\[(?P<text>[^\[\]]{1,500})\]" + _TARGET)
_HEADING = re.compile(r"^#{1,6}[ \t]{1,9}(.{1,200})", re.MULTILINE)
_FENCE = re.compile(r"^(?:```|~~~)", re.MULTILINE)


def address(link: str, base: str) -> str | None:
    """Where a link on the page at `base` leads: a path in the same folder, or an address elsewhere;
    None for a place on the same page, and what is no page.
    """
    link = urldefrag(link.strip())[0]
    if not link:
        return None
    try:
        parts = urlsplit(link)
    except ValueError:
        return None
    if parts.scheme:
        return link if parts.scheme in ("http", "https") and parts.netloc else None
    path = posixpath.join("/", posixpath.dirname(base), unquote(parts.path))
    return posixpath.normpath(path).lstrip("/") or None


def read_markdown(text: str, url: str) -> Page:
    """A page of Markdown: its links and images are marked, all else stands as it was written."""
    text, links = without_marks(text), Links()
    found = _HEADING.search(text)
    parts = _FENCE.split(text)  # between fences stands code
    marks = [match[0] for match in _FENCE.finditer(text)]
    parts[::2] = [_marked(part, url, links) for part in parts[::2]]
    text = "".join(part + mark for part, mark in zip(parts, [*marks, ""], strict=True))
    return Page(url, _plain(found[1]) if found else posixpath.basename(url), text, links.urls)


def _marked(text: str, url: str, links: Links) -> str:
    def link(match: re.Match[str]) -> str:
        where = address(match["url"], url)
        return match["text"] if where is None else links.mark(where, match["text"])

    return _LINK.sub(link, _IMAGE.sub(lambda match: f"[Image: {match['text']}]", text))


def _plain(heading: str) -> str:
    return _LINK.sub(lambda match: match["text"], heading).strip(" \t#")


def read_text(text: str, url: str) -> Page:
    """A page of plain text."""
    return Page(url, posixpath.basename(url), without_marks(text))


def read_html(text: str, url: str) -> Page:
    """The text of an HTML page: headings, items and paragraphs on lines of their own."""
    reader = _Reader(url)
    reader.feed(without_marks(text))
    reader.close()
    return reader.page()


_BLOCKS = re.compile(
    "address|article|aside|blockquote|body|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|"
    "form|h[1-6]|header|hr|html|main|nav|ol|p|pre|section|summary|table|tr|ul"
)
_UNSEEN = re.compile("head|script|style|template|noscript|svg|math|object|iframe")


class _Reader(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self._url, self._links = url, Links()
        self._parts: list[str] = []
        self._title: list[str] = []
        self._unseen = 0  # elements that are open and not shown
        self._as_written = 0  # <pre> elements that are open
        self._in_title = False
        self._link: tuple[str, int] | None = None  # where the open link leads, and where it begins

    def page(self) -> Page:
        text = "\n".join(line.rstrip() for line in "".join(self._parts).split("\n"))
        text = re.sub(r"\n{3,}", "\n\n", text).strip()
        title = " ".join("".join(self._title).split())
        return Page(self._url, title or posixpath.basename(self._url), text, self._links.urls)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unseen += _UNSEEN.fullmatch(tag) is not None
        self._in_title |= tag == "title"
        if self._unseen:
            return
        given = dict(attrs)
        if tag == "a":
            self._end_link()
            where = address(given.get("href") or "", self._url)
            self._link = None if where is None else (where, len(self._parts))
        elif tag == "img":
            self._parts.append(f"[Image: {given.get('alt') or given.get('title') or ''}]")
        elif tag == "br":
            self._parts.append("\n")
        elif tag == "li":
            self._parts.append("\n  * ")
        elif re.fullmatch(r"h[1-6]", tag):
            self._parts.append(f"\n\n{'#' * int(tag[1])} ")
        elif tag in ("td", "th"):
            self._parts.append(" ")
        elif _BLOCKS.fullmatch(tag):
            self._parts.append("\n" if tag in ("tr", "dt", "dd") else "\n\n")
        self._as_written += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self._in_title &= tag != "title"
        if _UNSEEN.fullmatch(tag):
            self._unseen = max(0, self._unseen - 1)
            return
        if tag == "a":
            self._end_link()
        elif tag == "pre":
            self._as_written = max(0, self._as_written - 1)
        if _BLOCKS.fullmatch(tag):
            self._parts.append("\n" if tag in ("tr", "dt", "dd") else "\n\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data)
        if self._unseen or self._in_title:
            return
        if not self._as_written:
            data = re.sub(r"\s+", " ", data)
            if not self._parts or self._parts[-1].endswith(("\n", " ")):
                data = data.lstrip()
        if data:
            self._parts.append(data)

    def _end_link(self) -> None:
        """Mark what was written since the link began."""
        if self._link is None:
            return
        (where, begin), self._link = self._link, None
        if text := " ".join("".join(self._parts[begin:]).split()):
            self._parts[begin:] = [self._links.mark(where, text)]
