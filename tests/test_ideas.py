"""The pages of docs/ideas: the code that they show is the code, and their figures are counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from book import reference
from book.pictures import pictures
from ossia.families import PRESETS
from ossia.insight.facts import Model
from ossia.insight.lineage import CLAIMS, findings
from ossia.ladder.effects import effects

ROOT = Path(__file__).parents[1]
IDEAS = ROOT / "docs" / "ideas"
CARD = ROOT / "ossia" / "models" / "ossia-stdlib"
# The page of each claim.
PAGES = {
    "Dropout removed": "dropout",
    "RoPE for learned positions": "rope",
    "SwiGLU for GELU": "swiglu",
    "Mixture of experts": "moe",
    "Grouped-query attention": "gqa",
    "Sliding windows": "windows",
    "RMSNorm for LayerNorm": "rmsnorm",
    "Attention sinks": "sinks",
    "MXFP4 experts": "mxfp4",
    "Width against depth": "shape",
    "Number of experts": "moe",
}
# Those that are no choice of an architecture.
OTHERS = ["harmony", "prefix-caching", "speculation"]
NAMES = sorted({*PAGES.values(), *OTHERS})


def text_of(page: str) -> str:
    return (IDEAS / f"{page}.md").read_text(encoding="utf-8")


def test_each_claim_has_a_page() -> None:
    assert list(PAGES) == [claim.title for claim in CLAIMS]
    assert sorted(path.stem for path in IDEAS.glob("*.md")) == NAMES


@pytest.mark.parametrize("page", NAMES)
def test_the_code_that_a_page_shows_is_in_its_file(page: str) -> None:
    blocks = re.findall(r'```python title="([^"]+)"\n(.*?)```', text_of(page), re.DOTALL)
    assert blocks
    for file, code in blocks:
        assert code in (ROOT / file).read_text(encoding="utf-8"), f"{page}: {file}"


def test_costs_and_effects_are_those_of_the_article() -> None:
    models = [Model(name, PRESETS[name]) for name in ("gpt2-xl", "gpt-oss-20b")]
    measured = effects(ROOT / "docs" / "ablation")
    for finding in findings(models, measured):
        text = " ".join(text_of(PAGES[finding.title]).split())
        for cost in finding.costs:
            assert " ".join(cost.split()) in text, f"{finding.title}: {cost}"
        if finding.effect is not None:
            assert finding.effect in text, f"{finding.title}: {finding.effect}"


def test_each_page_has_a_picture_and_its_parts() -> None:
    parts = ["**Before.**", "**In the code.**", "**Cost.**", "**Effect.**"]
    for name in NAMES:
        text = text_of(name)
        assert [part for part in parts if part not in text] == [], name
        assert re.search(r"^!\[[^]]+\]\([^)]+\.svg\)$", text, re.MULTILINE), name


def test_the_committed_pictures_are_those_that_the_command_writes() -> None:
    drawn = pictures()
    assert {path.name for path in IDEAS.glob("*.svg")} == set(drawn)
    for name, drawing in drawn.items():
        committed = (IDEAS / name).read_text(encoding="utf-8")
        assert committed == drawing, f"{name}: run python -m book.pictures docs/ideas"


def test_what_effort_does_is_what_the_models_card_says() -> None:
    card = (CARD / "README.md").read_text(encoding="utf-8")
    page = text_of("harmony")
    for ours, theirs in (
        ("tokens of analysis", "tokens of analysis"),
        ("right", "**all**"),
        ("of the questions that are worked out", "those that are worked out"),
    ):
        [row] = [line for line in card.splitlines() if line.startswith(f"| {theirs} |")]
        cells = row.replace("*", "").split("|")[2:]
        assert f"| {ours} |{'|'.join(cells)}" in page


def test_measured_speeds_are_those_of_the_results() -> None:
    results = ROOT / "bench" / "results"
    speculation = (results / "2026-11-28-speculation.md").read_text(encoding="utf-8")
    rows = [line for line in text_of("speculation").splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 3
    for row in rows:
        assert row.split("|", 2)[2] in speculation, row
    serve = (results / "2026-11-28-serve.md").read_text(encoding="utf-8")
    harness = (results / "2026-11-28-lm-eval.md").read_text(encoding="utf-8")
    assert "after 1.55 s in the median" in serve
    assert "390 tokens/s" in serve
    assert "| GPT-2 small | 3.7 s | 31.1 s |" in harness


def test_the_book_has_every_page() -> None:
    """`make docs` would refuse a page that is missing; here without MkDocs."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"- ([\w/-]+\.md)$", nav, re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted([*pages, *reference.PAGES])
