"""The tools browser.search, browser.open and browser.find, with what they print: the cursor of the
page, its title and address, the lines in view, and the lines with their numbers.

Text and behaviour are those that gpt-oss was trained with: openai/harmony for the descriptions, and
openai/gpt-oss, tools/simple_browser, for the results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

from ossia.errors import OssiaError
from ossia.tools.browser.page import SOURCE, Backend, Page, shortened, without_links
from ossia.tools.toolset import Caller, Function, Namespace, Result, read_arguments

_VIEW_TOKENS = 1024
_MOST_RESULTS = 20  # of a search
_MOST_MATCHES = 50  # of find
_MATCH_LINES = 4
_BEFORE = 4  # lines in view before a place that a link leads to

_DESCRIPTION = """Tool for browsing.
The `cursor` appears in brackets before each browsing display: `[{{cursor}}]`.
Cite information from the tool using the following format:
`【{{cursor}}†L{{line_start}}(-L{{line_end}})?】`, for example: `【6†L9-L11】` or `【8†L3】`.
Do not quote more than 10 words directly from the tool output.
sources={source} (default: {source})"""


def _function(name: str, description: str, required: list[str], **properties: Any) -> Function:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    return Function(name, description, parameters | ({"required": required} if required else {}))


_NUMBER = {"type": "number", "default": -1}
_FUNCTIONS = (
    _function(
        "search",
        "Searches for information related to `query` and displays `topn` results.",
        ["query"],
        query={"type": "string"},
        topn={"type": "number", "default": 10},
        source={"type": "string"},
    ),
    _function(
        "open",
        "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, "
        "showing `num_lines` lines.\n"
        "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
        "If `cursor` is not provided, the most recent page is implied.\n"
        "If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n"
        "If `loc` is not provided, the viewport will be positioned at the beginning of the "
        "document or centered on the most relevant passage, if available.\n"
        "Use this function without `id` to scroll to a new location of an opened page.",
        [],
        id={"type": ["number", "string"], "default": -1},
        cursor=_NUMBER,
        loc=_NUMBER,
        num_lines=_NUMBER,
        view_source={"type": "boolean", "default": False},
        source={"type": "string"},
    ),
    _function(
        "find",
        "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.",
        ["pattern"],
        pattern={"type": "string"},
        cursor=_NUMBER,
    ),
)


class Browser:
    """The toolset over a backend. tokens: counts those of a text; a page shows about 1,024."""

    label = "browser"

    def __init__(self, backend: Backend, tokens: Callable[[str], int]) -> None:
        self._backend, self._tokens = backend, tokens
        description = _DESCRIPTION.format(source=backend.source)
        self.namespace = Namespace("browser", description, _FUNCTIONS)
        self.functions = tuple(
            Function(f"browser.{f.name}", f.description, f.parameters) for f in _FUNCTIONS
        )

    def begin(self) -> Caller:
        """See Toolset. The pages that a reply has opened are known by their cursors."""
        visit = Visit(self._backend, self._tokens)

        async def call(name: str, arguments: str) -> Result:
            try:
                return Result(await asyncio.to_thread(visit.call, name, arguments))
            except OssiaError as error:
                return Result(f"error: {error}", is_error=True)

        return call


class Visit:
    """The pages that one reply has seen; a page's cursor is its place among them."""

    def __init__(self, backend: Backend, tokens: Callable[[str], int]) -> None:
        self._backend, self._tokens = backend, tokens
        self._pages: list[Page] = []

    def call(self, name: str, arguments: str) -> str:
        """What a call prints. Raises OssiaError."""
        name = name.removeprefix("browser.")
        function = next((f for f in _FUNCTIONS if f.name == name), None)
        if function is None:
            raise OssiaError(f"there is no browser.{name}; there are search, open and find")
        values = read_arguments(arguments, function)
        values.pop("source", None)  # there is one
        match name:
            case "search":
                return self.search(_text(values, "query"), _whole(values, "topn", 10))
            case "open":
                return self.open(values)
            case _:
                return self.find(_text(values, "pattern"), _whole(values, "cursor"))

    def search(self, query: str, most: int) -> str:
        """Show a page of results."""
        return self._show(self._backend.search(query, max(1, min(most, _MOST_RESULTS))), 0)

    def open(self, values: dict[str, Any]) -> str:
        """Show a page, or more of one."""
        id, line = values.get("id", -1), _whole(values, "loc")
        source, place = values.get("view_source", False) is True, None
        if isinstance(id, str) and not id.isdecimal():
            page = self._backend.fetch(SOURCE + id if source else id)
        else:
            current, id = self._page(_whole(values, "cursor")), _whole(values, "id")
            url = current.url if id < 0 else current.urls.get(str(id))
            if url is None:
                raise OssiaError(f"Invalid link id `{id}`.")
            if id < 0 and not source:
                page = current
            else:
                page = self._backend.fetch(SOURCE + url if source else url)
                place = None if source else (current.places or {}).get(str(id))
        if line < 0:
            line = 0 if place is None else max(0, place - _BEFORE)
        return self._show(page, line, _whole(values, "num_lines"))

    def find(self, pattern: str, cursor: int) -> str:
        """Show the lines of a page that hold a text, in any case of letters."""
        page, pattern = self._page(cursor), pattern.lower()
        if page.places is not None:
            raise OssiaError("Cannot run `find` on search results page or find results page")
        lines = without_links("\n".join(page.lines)).split("\n")
        places: dict[str, int] = {}
        shown: list[str] = []
        n = 0
        while n < len(lines) and len(shown) < _MOST_MATCHES:
            if pattern in lines[n].lower():
                link = f"# 【{len(shown)}†match at L{n}】"
                places[str(len(shown))] = n
                shown.append("\n".join([link, *lines[n : n + _MATCH_LINES]]))
                n += _MATCH_LINES
            else:
                n += 1
        found = Page(
            f"{page.url}/find?pattern={quote(pattern, errors='replace')}",
            f"Find results for text: `{pattern}` in `{page.title}`",
            "\n\n".join(shown) or f"No `find` results for pattern: `{pattern}`",
            dict.fromkeys(places, page.url),
            places,
        )
        return self._show(found, 0)

    def _page(self, cursor: int) -> Page:
        if not self._pages:
            raise OssiaError("No pages to access!")
        if not -1 <= cursor < len(self._pages):
            raise OssiaError(
                f"Cursor `{cursor}` is out of range. "
                f"Available cursor indices: [0 - {len(self._pages) - 1}]."
            )
        return self._pages[cursor]

    def _show(self, page: Page, line: int, count: int = -1) -> str:
        """The lines of a page from `line` on: `count`, or as many as fit the view. It becomes the
        current page.
        """
        total = len(page.lines)
        if line >= total:
            raise OssiaError(
                f"Invalid location parameter: `{line}`. Cannot exceed page maximum of {total - 1}."
            )
        numbered = [f"L{n}: {text}" for n, text in enumerate(page.lines)][line:]
        numbered = numbered[:count] if count > 0 else self._fitting(numbered)
        self._pages.append(page)
        where = f" ({shortened(unquote(page.url))})" if page.url else ""
        last = line + len(numbered) - 1
        return (
            f"[{len(self._pages) - 1}] {page.title}{where}\n"
            f"**viewing lines [{line} - {last}] of {total - 1}**\n\n" + "\n".join(numbered)
        )

    def _fitting(self, lines: list[str]) -> list[str]:
        """As many lines as fit the view, the last of them not quite."""
        tokens = 0
        for n, text in enumerate(lines):
            tokens += self._tokens(f"{text}\n")
            if tokens > _VIEW_TOKENS:
                return lines[: n + 1]
        return lines


def _text(values: dict[str, Any], name: str) -> str:
    if not isinstance(values[name], str):
        raise OssiaError(f"`{name}` should be a string")
    return values[name]


def _whole(values: dict[str, Any], name: str, default: int = -1) -> int:
    """A whole number, which models also write as a float or a string."""
    value = values.get(name, default)
    try:
        return default if value is None else int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise OssiaError(f"`{name}` should be an integer, not `{value}`") from error
