# ruff: noqa: E402, RUF001
"""What the web page makes of Markdown, code and maths, in Chromium's own elements."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.serve.chromium import Tab
from tests.serve.conftest import run

fastapi = pytest.importorskip("fastapi")
markdown_it = pytest.importorskip("markdown_it")

from ossia.serve import page

SAMPLES = (Path(__file__).parent / "markdown.txt").read_text().removesuffix("\n").split("\n%%\n")
BLOCK = (
    r"\s*(</?(?:p|[uo]l|li|blockquote|h\d|hr|table|thead|tbody|tr|td\w*|th\w*|pre)(?: [^>]*)?>)\s*"
)


@pytest.fixture(scope="module")
def tab(browser) -> Iterator[Tab]:
    app = fastapi.FastAPI()
    app.include_router(page.routes())
    port, stop = run(app)
    tab = browser.tab(f"http://127.0.0.1:{port}/")
    tab.js(
        "(async () => { window.markdown = (await import('/page/blocks.js')).renderMarkdown;"
        " window.maths = (await import('/page/maths.js')).maths;"
        " window.highlighted = (await import('/page/code.js')).highlighted;"
        " window.shown = (text) => { const into = document.createElement('div');"
        " markdown(into, text); return into; }; })()"
    )
    yield tab
    tab.close()
    stop()


class Plain(HTMLParser):
    """HTML with only the attributes that matter, and spaces only where they show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        look = f"{given.get('class')} {given.get('style')}"
        if tag in ("td", "th"):
            tag += "-right" if "right" in look else "-centre" if re.search("cent", look) else ""
        shown = [f" {given[name]}" for name in ("href", "start") if given.get(name)]
        if tag not in ("div", "span"):
            self.parts.append(f"<{tag}{''.join(shown)}>")

    def handle_endtag(self, tag):
        if tag not in ("br", "hr", "div", "span"):
            self.parts.append(f"</{tag}>")

    def handle_data(self, data):
        self.parts.append(data)

    def __str__(self) -> str:
        text = re.sub(BLOCK, r"\1", "".join(self.parts)).replace("\n</code>", "</code>")
        return re.sub(r"\s+", " ", text.replace("<br>\n", "<br>")).strip()


def test_it_reads_commonmark_and_tables_as_markdown_it_does(tab):
    known = markdown_it.MarkdownIt("commonmark", {"html": False})
    known.enable(["table", "strikethrough"])
    read = tab.js(
        f"{json.dumps(SAMPLES)}.map((text) => {{ const into = shown(text);"
        " into.querySelectorAll('.code-bar').forEach((bar) => bar.remove());"
        " return into.innerHTML; })"
    )
    for sample, html in zip(SAMPLES, read, strict=True):
        expected = str(Plain(known.render(sample)))
        expected = re.sub(  # the page's headings begin below those of messages
            r"(?<=<h)\d|(?<=</h)\d", lambda level: str(min(int(level[0]) + 2, 6)), expected
        )
        assert str(Plain(html)) == expected, sample


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("<b>x</b> <br> y", "<p>&lt;b&gt;x&lt;/b&gt; <br> y</p>"),
        ("see https://a.b/c_d_(e). (https://a.b/)", "<p>see [c_d_(e)]. ([])</p>"),
        ("![cat](https://a.b/)", "<p>[Image: cat]</p>"),
        ("[a](javascript:x) [b](data:x) [c](/local)", None),
        ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
        ("It costs $5 or $6, $ 7 $ and US$8", None),
        ("the year was\n1986. A good one.", None),
        ("\\[ open", "<p>[ open</p>"),
        ("$$\nopen", None),
    ],
)
def test_where_it_goes_its_own_way(tab, text, html):
    tab.js(f"window.into = shown({json.dumps(text)})")
    tab.js(
        "into.querySelectorAll('a').forEach((a) => a.replaceWith("
        "'[' + a.textContent.replace('https://a.b/', '') + ']'))"
    )
    if html is None:  # it is all text
        assert tab.js("into.innerHTML") == f"<p>{text}</p>"
    else:
        assert tab.js("into.innerHTML") == html


def test_a_text_that_grows_ends_as_the_whole_does(tab):
    grown = tab.js(
        f"{json.dumps(SAMPLES)}.map((text) => {{ const into = document.createElement('div');"
        " for (let n = 1; n <= text.length; n += 3) markdown(into, text.slice(0, n));"
        " markdown(into, text); return into.innerHTML === shown(text).innerHTML; })"
    )
    assert grown == [True] * len(SAMPLES)
    kept = "(() => { const into = shown('a\\n\\nb'), first = into.firstChild;"
    assert tab.js(f"{kept} markdown(into, 'a\\n\\nb c'); return into.firstChild === first; }})()")


@pytest.mark.parametrize(
    "text",
    [
        "'*a **b '.repeat(20000)",
        "'['.repeat(50000)",
        "'[a]('.repeat(20000)",
        "Array.from({length: 600}, (_, i) => '`'.repeat(i + 1)).join(' ')",
        "'>'.repeat(50000)",
        "'- '.repeat(20000) + 'a'.repeat(2000)",
        "'$a '.repeat(30000)",
        "'\\\\('.repeat(30000)",
        "'\\\\[\\na\\n'.repeat(20000)",
        "'$' + '\\\\frac{'.repeat(1900) + '$'",
        "'|a'.repeat(3000) + '|\\n' + '|-'.repeat(3000) + '|\\n' + '|x\\n'.repeat(2000)",
        "'```cpp\\n' + '/*'.repeat(20000)",
        "'```py\\n' + '\"\"\"a'.repeat(10000)",
    ],
)
def test_hostile_text_ends(tab, text):
    """Each would take minutes if something took the square of its length."""
    assert tab.js(f"shown({text}).textContent.length") > 1000


def test_code_is_highlighted_and_stays_what_it_was(tab):
    code = {
        "python": 'def f(x):  # note\n    return "a\\"b", 1.5e3, x',
        "js": "const a = `x ${1}`; // end\n/* open",
        "c++": '#include <x>\nint main() { return 0x1F; } "open',
        "rust": 'fn main<\'a>() { let s = "x"; }',
        "bash": "echo \"$HOME\" 'a' # b\nif [ $# -gt 0 ]; then :; fi",
        "sql": "SELECT a FROM b WHERE c = 'it''s' -- d",
        "html": '<p class="x">a &amp; b</p><!-- c -->',
        "json": '{"a": [1, true, null]}',
        "diff": "-a\n+b\n c",
        "nonsense": "whatever it is",
    }
    for language, text in code.items():
        nodes = f"highlighted({json.dumps(text)}, '{language}')"
        said = tab.js(f"{nodes}.map((node) => node.textContent ?? node).join('')")
        assert said == text, language
        kinds = tab.js(f"{nodes}.map((n) => n.className + ' ' + n.textContent)")
        found = {kind for kind in kinds if kind.startswith("t-")}
        assert bool(found) == (language != "nonsense")
        if language == "python":
            assert found == {
                "t-word def", "t-call f", "t-comment # note", "t-word return",
                't-string "a\\"b"', "t-number 1.5e3",
            }  # fmt: skip


MATHS = {
    r"x^2_i": "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>",
    r"\frac{a}{b}": "<mfrac><mi>a</mi><mi>b</mi></mfrac>",
    r"\frac12": "<mfrac><mn>1</mn><mn>2</mn></mfrac>",
    r"\sqrt[3]{x}": "<mroot><mi>x</mi><mn>3</mn></mroot>",
    r"\alpha\le\Omega": "<mrow><mi>α</mi><mo>≤</mo><mi>Ω</mi></mrow>",
    r"f'": "<msup><mi>f</mi><mo>′</mo></msup>",
    r"\mathbb{R}^n": "<msup><mi>ℝ</mi><mi>n</mi></msup>",
    r"\mathbf{x}": "<mi>𝐱</mi>",
    r"3.14": "<mn>3.14</mn>",
    r"\{a\}": "<mrow><mo>{</mo><mi>a</mi><mo>}</mo></mrow>",
    r"\text{if } x": "<mrow><mtext>if&nbsp;</mtext><mi>x</mi></mrow>",
    r"\begin{matrix}a&b\\c&d\end{matrix}": "<mrow><mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi>"
    "</mtd></mtr><mtr><mtd><mi>c</mi></mtd><mtd><mi>d</mi></mtd></mtr></mtable></mrow>",
    r"\sum_{i=1}^n i": "<mrow><munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow>"
    "<mi>n</mi></munderover><mi>i</mi></mrow>",
    r"\left(\frac{1}{2}\right]": "<mrow><mo>(</mo><mfrac><mn>1</mn><mn>2</mn></mfrac><mo>]</mo>"
    "</mrow>",
    r"\hat x": "<mover><mi>x</mi><mo>^</mo></mover>",
    r"\lim_{x\to0}": "<munder><mi>lim</mi><mrow><mi>x</mi><mo>→</mo><mn>0</mn></mrow></munder>",
}


@pytest.mark.parametrize(("tex", "expected"), MATHS.items())
def test_maths_becomes_mathml(tab, tex, expected):
    tab.js(f"window.made = maths({json.dumps(tex)}, true).querySelector('semantics')")
    assert tab.js("made.lastChild.textContent") == tex
    tab.js(
        "[made.firstChild, ...made.firstChild.querySelectorAll('*')].forEach((element) =>"
        " element.getAttributeNames().forEach((name) => element.removeAttribute(name)))"
    )
    assert tab.js("made.firstChild.outerHTML") == expected


@pytest.mark.parametrize(
    "tex",
    [r"\foo", "a}", "{a", r"\frac{a}", "x^", r"\left( x", r"\begin{x}\end{x}", r"\begin{matrix}a",
     "&", r"\\", r"\href{javascript:x}{y}", "{" * 200 + "}" * 200, r"\end{matrix}", r"\right)",
     "a#b"],
)  # fmt: skip
def test_what_is_not_understood_is_shown_as_source(tab, tex):
    assert tab.js(f"maths({json.dumps(tex)}, false).outerHTML") == (
        f'<code class="tex">${tex.replace("&", "&amp;")}$</code>'
    )
