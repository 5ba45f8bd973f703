"""Pages and pictures of comparisons, opened from disk in headless Chromium where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ossia.families import PRESETS
from ossia.insight import article, compare_page
from ossia.insight.compare import Setting, compare
from ossia.insight.facts import Model
from ossia.insight.lineage import findings

LONG = "a-mixture-of-experts-with-a-rather-long-name-indeed-128e-instruct-2507"

# Texts that lie on another one, or outside of their drawing, by the boxes of the fonts shown.
TROUBLES = """[...document.querySelectorAll('svg.drawing')].flatMap((svg) => {
  const frame = svg.viewBox.baseVal;
  const texts = [...svg.querySelectorAll('text')].map((t) => [t.textContent, t.getBBox()]);
  const outside = texts.filter(([_, b]) => b.x < frame.x - 1 || b.y < frame.y - 1 ||
    b.x + b.width > frame.x + frame.width + 1 || b.y + b.height > frame.y + frame.height + 3);
  const meet = (a, b, start, size) =>
    Math.min(a[start] + a[size], b[start] + b[size]) - Math.max(a[start], b[start]);
  const over = texts.flatMap(([one, a], i) => texts.slice(0, i)
    .filter(([_, b]) => meet(a, b, 'x', 'width') > 0.5 && meet(a, b, 'y', 'height') > 3)
    .map(([other]) => `${one} | ${other}`));
  return [...outside.map(([text]) => text), ...over];
})
"""


def page(*models: Model) -> str:
    comparison = compare(models, Setting(1024))
    lineage = findings(models, {"gqa": "none seen"})
    return compare_page.render(comparison, lineage, [], "ossia compare")


def presets(*names: str) -> list[Model]:
    return [Model(name, PRESETS[name]) for name in names]


@pytest.fixture
def opened(browser, tmp_path: Path) -> Iterator[Callable]:
    """opened(text, width, scheme): a tab with the page, loaded from disk."""
    tabs = []

    def open_page(text: str, width: int, scheme: str, name: str = "page.html"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        tab = browser.tab(file.as_uri(), width, 900)
        tab.size(width, 900, prefers_color_scheme=scheme)
        tab.wait("document.readyState === 'complete'")
        tabs.append(tab)
        assert [url for url in tab.requests if url != file.as_uri()] == []
        assert tab.complaints == []
        return tab

    yield open_page
    for tab in tabs:
        tab.close()


PAGES = {
    "128 experts twice": presets("gpt-oss-120b", "qwen3-235b-a22b"),
    "a long name": [Model(LONG, PRESETS["qwen3-30b-a3b"]), *presets("gpt2")],
    "one": presets("gpt-oss-20b"),
    "six": presets("gpt2", "gpt2-xl", "qwen3-0.6b", "qwen3-32b", "gpt-oss-20b", "qwen3-30b-a3b"),
}


@pytest.mark.parametrize("crowd", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_a_page_opens_from_disk(opened, crowd: str, width: int, scheme: str) -> None:
    models = PAGES[crowd]
    tab = opened(page(*models), width, scheme)
    assert tab.js(TROUBLES) == []
    assert tab.js("document.documentElement.scrollWidth") <= width
    assert tab.js("document.querySelectorAll('svg.drawing').length") == 11
    # A drawing that is wider than the screen scrolls by itself; its text stays legible.
    least = "Math.min(...[...document.querySelectorAll('svg.drawing text')].map((t) => "
    least += "t.getBoundingClientRect().height))"
    assert tab.js(least) > 7


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_follow_the_scheme(opened, scheme: str) -> None:
    tab = opened(page(*presets("gpt2-xl", "gpt-oss-20b")), 800, scheme)
    ink = "getComputedStyle(document.querySelector('svg.drawing text.bold')).fill"
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = (brightness(tab.js(part)) for part in (paper, ink))
    assert (light > 200 > 80 > dark) if scheme == "light" else (dark > 200 > 80 > light)


def brightness(colour: str) -> float:
    return sum(float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 3


def test_a_picture_opens_from_disk(opened) -> None:
    comparison = compare(presets("gpt2-xl", "gpt-oss-20b"), Setting(1024))
    for name, text in compare_page.files(comparison).items():
        tab = opened(text, 700, "dark", name)
        assert tab.js(TROUBLES.replace("'svg.drawing'", "'svg'")) == []


def test_the_index_of_the_article(opened) -> None:
    files = article.files(lambda _: Setting(1024), {}, lambda _: [], "ossia compare")
    tab = opened(files["index.html"], 390, "light")
    assert tab.js(TROUBLES) == []
    assert tab.js("document.querySelectorAll('a').length") == 3
