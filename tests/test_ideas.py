"""The pages of docs/ideas: the code that they show is the code, and their figures are counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ossia.families import PRESETS
from ossia.insight.facts import Model
from ossia.insight.lineage import CLAIMS, findings
from ossia.ladder.effects import effects

ROOT = Path(__file__).parents[1]
IDEAS = ROOT / "docs" / "ideas"
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


def text_of(page: str) -> str:
    return (IDEAS / f"{page}.md").read_text(encoding="utf-8")


def test_each_claim_has_a_page() -> None:
    assert list(PAGES) == [claim.title for claim in CLAIMS]
    assert sorted(set(PAGES.values())) == sorted(path.stem for path in IDEAS.glob("*.md"))


@pytest.mark.parametrize("page", sorted(set(PAGES.values())))
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


def test_the_book_has_every_page() -> None:
    """`make docs` would refuse a page that is missing; here without MkDocs."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"- ([\w/-]+\.md)$", nav, re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)
