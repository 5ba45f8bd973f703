"""The browser over a folder: what each call prints, and that no call leaves the folder."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from ossia.tools.browser import Browser, Folder, Page
from ossia.tools.browser.markup import read_html, read_markdown
from ossia.tools.browser.page import without_links, wrapped
from ossia.tools.toolset import Caller, Result

RIVERS = """# Rivers of *Europe*

The [Danube](danube.md "a river") rises in ![a map](map.png) the Black Forest.
See [elsewhere](https://example.org/rivers#top), [above](#rivers) and `code`.

```sh
not [a link](danube.md)
```
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pages"
    (root / "more").mkdir(parents=True)
    (root / "rivers.md").write_text(RIVERS)
    long = "\n".join(f"Kilometre {n}." for n in range(400))
    (root / "danube.md").write_text(f"{long}\nThe Danube ends in a delta.\n{long}")
    (root / "more" / "wind.html").write_text(
        "<html><head><title>Winds</title><style>p {}</style></head><body><h1>Wind</h1>"
        "<p>The bora\n is <b>cold</b>.</p><script>alert(1)</script><ul><li>One<li>Two</ul>"
        "<p><a href='../rivers.md'>Rivers</a>"
    )
    (root / ".hidden.md").write_text("bora hidden")
    (root / "data.bin").write_text("bora")
    (tmp_path / "secret.md").write_text("bora secret")
    (root / "linked.md").symlink_to(tmp_path / "secret.md")
    return root


@pytest.fixture
def call(folder: Path) -> Caller:
    return Browser(Folder(folder), lambda text: len(text) // 4).begin()


def run(call: Caller, name: str, arguments: str) -> Result:
    async def result() -> Result:
        return await call(name, arguments)

    return asyncio.run(result())


def ask(call: Caller, name: str, **arguments: object) -> Result:
    return run(call, f"browser.{name}", json.dumps(arguments))


def test_a_search_shows_the_pages_that_hold_its_words(call):
    assert ask(call, "search", query="bora").text == (
        "[0] bora\n"
        "**viewing lines [0 - 5] of 5**\n\n"
        "L0: \nL1: URL: \nL2: \nL3: # Search Results\nL4: \n"
        "L5:   * 【0†Winds】 # Wind The bora is cold. * One * Two Rivers"
    )
    assert "No results." in ask(call, "search", query="unheard").text
    assert "No results." in ask(call, "search", query='"; DROP *').text
    assert "【1†" not in ask(call, "search", query="the", topn=1).text


def test_a_link_opens_where_the_words_are(call):
    ask(call, "search", query="delta", topn=2)
    opened = ask(call, "open", id=0).text
    assert opened.startswith("[1] danube.md (danube.md)\n**viewing lines [396 - ")
    assert "of 800**\n\nL396: Kilometre 396.\n" in opened
    assert "L400: The Danube ends in a delta.\n" in opened
    assert opened.count("\n") < 300  # a view, not the page
    more = ask(call, "open", loc=799, num_lines=1).text
    assert more.endswith("**viewing lines [799 - 799] of 800**\n\nL799: Kilometre 398.")
    assert ask(call, "open", loc=801).text == (
        "error: Invalid location parameter: `801`. Cannot exceed page maximum of 800."
    )
    assert ask(call, "open", cursor=0).text.startswith("[3] delta")  # no page was added


def test_a_page_opens_by_its_path_and_as_it_was_written(call):
    opened = ask(call, "open", id="rivers.md").text
    assert opened.startswith("[0] Rivers of *Europe* (rivers.md)\n")
    assert "The 【0†Danube】 rises in [Image: a map] the Black Forest." in opened
    assert "See 【1†elsewhere†example.org】, above and `code`." in opened
    assert "not [a link](danube.md)" in opened
    assert ask(call, "open", id=0).text.startswith("[1] danube.md")
    source = ask(call, "open", id="rivers.md", view_source=True).text
    assert "L0: # Rivers of *Europe*" in source
    assert "[Danube](danube.md" in source
    refused = ask(call, "open", id=1, cursor=0)
    assert refused.is_error
    assert "https://example.org/rivers" in refused.text


def test_find_shows_each_match_and_where_it_is(call):
    ask(call, "open", id="danube.md")
    found = ask(call, "find", pattern="DELTA").text
    assert found == (
        "[1] Find results for text: `delta` in `danube.md` (danube.md/find?pattern=delta)\n"
        "**viewing lines [0 - 4] of 4**\n\n"
        "L0: # 【0†match at L400】\nL1: The Danube ends in a delta.\n"
        "L2: Kilometre 0.\nL3: Kilometre 1.\nL4: Kilometre 2."
    )
    assert "L400: The Danube" in ask(call, "open", id=0).text
    assert ask(call, "find", pattern="x", cursor=1).is_error
    assert "No `find` results for pattern: `nothing`" in ask(call, "find", pattern="nothing").text
    assert "No `find` results" in ask(call, "find", pattern="\ud83d", cursor=0).text


@pytest.mark.parametrize(
    "id",
    ["../secret.md", "linked.md", ".hidden.md", "data.bin", "/etc/passwd", "more/../../secret.md",
     "file:///etc/passwd", "http://127.0.0.1/", "view-source:../secret.md", ""],
)  # fmt: skip
def test_nothing_outside_the_folder_is_shown(call, id):
    assert ask(call, "open", id=id).is_error
    assert "secret" not in ask(call, "search", query="bora secret hidden").text.split("\n", 1)[1]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("open", "{}", "No pages to access!"),
        ("find", '{"pattern": "a", "cursor": 3}', "No pages to access!"),
        ("click", "{}", "there is no browser.click"),
        ("search", "[1]", "no JSON object"),
        ("search", "{", "not JSON"),
        ("search", "{}", "needs query"),
        ("search", '{"query": 1}', "should be a string"),
        ("open", '{"id": "rivers.md", "loc": "x"}', "should be an integer"),
        ("open", '{"id": [1]}', "No pages"),
        ("search", '{"query": "a", "page": 1}', "no parameter page"),
    ],
)
def test_a_mistake_in_a_call_is_a_result(call, name, arguments, message):
    result = run(call, f"browser.{name}", arguments)
    assert result.is_error
    assert message in result.text


def test_the_index_follows_the_files(folder, call):
    (folder / "new.txt").write_text("A glacier.")
    assert "new.txt" in ask(call, "search", query="glacier").text
    (folder / "new.txt").write_text("A fjord, now.")
    assert "No results." in ask(call, "search", query="glacier").text
    assert "fjord" in ask(call, "open", id="new.txt").text
    (folder / "new.txt").unlink()
    assert "No results." in ask(call, "search", query="fjord").text
    assert ask(call, "open", id="new.txt").is_error


def test_html_becomes_text(folder):
    page = Folder(folder).fetch("more/wind.html")
    assert page == Page(
        "more/wind.html",
        "Winds",
        "# Wind\n\nThe bora is cold.\n\n  * One\n  * Two\n\n【0†Rivers】",
        {"0": "rivers.md"},
    )
    assert read_html("<pre>a\n  b</pre><td>1<td>2<br>&lt;", "x").text == "a\n  b\n\n 1 2\n<"


def test_marks_of_links_in_a_text_are_no_links():
    assert read_markdown("【0†x】[a†b](c)", "x").text == "〖0†x〗【0†a‡b】"
    assert without_links("cut】 【1†one】 【2†two†example.org】 【3†thr") == " one two thr"


@pytest.mark.parametrize("text", ["![" * 10**4, "# " * 10**5, "[a](" * 10**5, "a" * 10**6])
def test_no_file_takes_long(text):
    """Each of these takes a naive pattern or wrapping hours."""
    page = read_markdown(text, "x")
    assert "".join(page.lines).count("a") == page.text.count("a")
    assert wrapped("a b " * 30) == ["a b " * 20, "a b " * 10]


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(OssiaError, match="no such folder"):
        Folder(tmp_path / "missing")
