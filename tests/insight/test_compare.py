"""Comparisons hold the published figures, and their pages fetch and run nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from ossia.families import PRESETS
from ossia.insight import article, compare_page
from ossia.insight.compare import INT8_ELEMENT, Comparison, Setting, compare
from ossia.insight.compare_text import markdown
from ossia.insight.facts import Model
from ossia.insight.hardware import HARDWARE
from ossia.insight.lineage import CLAIMS, findings
from ossia.insight.measured import points
from ossia.ladder.rungs import RUNGS
from ossia.ops import int8

NBSP = "\N{NO-BREAK SPACE}"


def models(*names: str) -> list[Model]:
    return [Model(name, PRESETS[name]) for name in names]


def cells(comparison: Comparison, key: str) -> list[str]:
    row = next(row for group in comparison.groups for row in group.rows if row.key == key)
    return [cell.replace(NBSP, " ") for cell in row.cells]


def test_published_figures_stand_in_the_table() -> None:
    found = compare(models("gpt2-xl", "gpt-oss-20b", "gpt-oss-120b"), Setting(1024))
    assert cells(found, "total") == ["1,557,611,200", "20,914,757,184", "116,829,156,672"]
    assert cells(found, "active")[1:] == ["3,608,307,264", "5,132,849,472"]
    assert cells(found, "checkpoint")[1:] == ["13.8 GB", "65.2 GB"]
    assert cells(found, "read") == ["6.22 GB", "3.71 GB", "5.00 GB"]
    assert cells(found, "kv_full")[1] == "3.22 GB"
    assert cells(found, "heads")[1] == "64 query, 8 KV heads of 64"
    assert cells(found, "qk_norm") == ["no", "no", "no"]
    assert cells(found, "biases") == ["yes", "yes", "yes"]
    assert cells(found, "overtakes")[0] == "token 3,200"
    assert cells(found, "longest") == ["1,024", "90,966", "does not fit"]


def test_rows_that_differ_are_told_from_others() -> None:
    found = compare(models("gpt-oss-20b", "gpt-oss-120b"), Setting(1024))
    differing = {row.key for row in found.groups[0].rows if row.differs}
    assert differing == {"layers", "pattern", "feedforward"}


def test_the_context_where_all_layers_are_full_holds_the_published_key_size() -> None:
    """Qwen3-30B-A3B: 48 layers of 4 heads of 128 for keys and values, in bfloat16."""
    found = compare(models("qwen3-30b-a3b"), Setting(1000))
    row = next(row for group in found.groups for row in group.rows if row.key == "kv")
    assert row.values == (1000 * 48 * 2 * 4 * 128 * 2,)


def test_bounds_of_compute_are_left_out_where_the_rate_is_unknown() -> None:
    found = compare(models("gpt2"), Setting(64, hardware=(HARDWARE["m4-max"],)))
    keys = [row.key for row in found.groups[-1].rows]
    assert keys == ["fits", "decode_1", "decode_8", "decode_64", "decode_256"]


def test_int8_elements_are_the_kernels() -> None:
    assert INT8_ELEMENT == int8.ELEMENT_BYTES


def test_a_record_is_json_with_a_figure_for_each_row() -> None:
    found = compare(models("gpt2", "qwen3-0.6b"), Setting(64))
    record = json.loads(json.dumps(found.record()))
    assert [model["name"] for model in record["models"]] == ["gpt2", "qwen3-0.6b"]
    figures = record["models"][0]["figures"]
    assert figures["Parameters"]["total"] == 124_439_808
    assert figures["H100 SXM"]["decode_1"] > 0
    assert record["setting"]["context"] == 64


def test_each_rung_of_the_ladder_is_a_claim() -> None:
    assert [claim.rung for claim in CLAIMS if claim.rung] == [rung.name for rung in RUNGS]


def test_claims_have_facts_costs_and_effects() -> None:
    found = {f.title: f for f in findings(models("gpt2-xl", "gpt-oss-20b"), {"gqa": "none seen"})}
    grouped = found["Grouped-query attention"]
    assert grouped.effect == "none seen"
    assert grouped.facts == ("one KV head per query head", "8 query heads per KV head")
    # 24 layers of 8 heads of 64 in bfloat16, and of 64 heads.
    assert grouped.costs[1].replace(NBSP, " ") == (
        "49.2 kB of keys and values per token; ungrouped 393 kB"
    )
    assert found["Sliding windows"].effect is None
    assert found["Attention sinks"].costs == ("no parameters", f"{24 * 64:,} parameters")
    assert found["MXFP4 experts"].costs[1].replace(NBSP, " ") == (
        "a checkpoint of 13.8 GB; with experts in bfloat16 41.8 GB"
    )
    assert "1.64 M parameters" in found["RoPE for learned positions"].costs[0].replace(NBSP, " ")
    assert found["Number of experts"].facts == ("none", "4 of 32")
    assert all(finding.differs for finding in found.values())


def page(*names: str) -> str:
    comparison = compare(models(*names), Setting(1024))
    return compare_page.render(comparison, findings(comparison.models, {}), [], "ossia compare x")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_page_that_fetches_and_runs_nothing(name: str) -> None:
    text = page(name, "gpt-oss-120b")
    assert len(text) < 5_000_000
    for forbidden in ("<script", "<link", "<img", "@import", "url(", " src=", "<iframe", "onload"):
        assert forbidden not in text
    assert len(re.findall(r'id="([^"]+)"', text)) == len(set(re.findall(r'id="([^"]+)"', text)))
    for target in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{target}"' in text


def test_names_are_escaped() -> None:
    comparison = compare([Model("<i>&", PRESETS["gpt2"])], Setting(64))
    text = compare_page.render(comparison, findings(comparison.models, {}), [], "<command>")
    assert "<i>&" not in text
    assert "<command>" not in text


def test_the_article_has_three_pages_and_an_index() -> None:
    files = article.files(lambda _: Setting(1024), {}, lambda _: [], "ossia compare --article x")
    pages = [name for name in files if name.endswith(".html")]
    assert pages == [
        "gpt2-xl-vs-gpt-oss-20b.html",
        "gpt-oss-20b-vs-qwen3-30b-a3b.html",
        "gpt-oss-120b-vs-qwen3-235b-a22b.html",
        "index.html",
    ]
    for link in re.findall(r'href="([^"#]+\.html)"', files["index.html"]):
        assert link in files
    assert "shape.svg" in files
    assert "gpt2-xl-vs-gpt-oss-20b/blocks.svg" in files
    for claim in CLAIMS:
        assert claim.title in files[pages[0]]


def record(**changes: object) -> dict:
    spread = {"median": 2e10, "least": 1e10, "most": 3e10}
    rate = {"median": 6.0, "least": 5.0, "most": 7.0}
    decoding = [{"batch": 1, "tokens_per_second": rate}, {"batch": 8, "tokens_per_second": rate}]
    return {
        "model": "gpt-oss-20b with random weights",
        "machine": {"processor": "a processor", "threads": 2},
        "dtype": "bfloat16",
        "dense": None,
        "run": {"speed": {"read_bytes_per_second": spread, "decoding": decoding}},
        **changes,
    }


def test_measured_points_stand_beside_their_bounds() -> None:
    one, eight = points(models("gpt2", "gpt-oss-20b"), record(), "bench.json")
    assert (one.model, one.batch, one.tokens_per_second) == ("gpt-oss-20b", 1, 6.0)
    kv = 24 * 2 * 8 * 64 * 2 * 48
    assert one.bound == pytest.approx(3e10 / (3.71e9 + kv), rel=0.002)
    assert one.share == pytest.approx(6.0 / one.bound)
    assert 1 < eight.bound / one.bound < 8
    quantized = points(models("gpt-oss-20b"), record(dense="int8"), "bench.json")[0]
    assert quantized.bound > one.bound
    assert points(models("gpt2"), record(), "bench.json") == []


def test_other_json_is_refused_by_its_file() -> None:
    with pytest.raises(OssiaError, match=r"bench.json is not what `ossia bench cpu --json` prints"):
        points(models("gpt-oss-20b"), record(run={}), "bench.json")


def test_markdown_has_a_column_for_each_model(tmp_path: Path) -> None:
    found = compare(models("gpt2", "gpt-oss-20b"), Setting(64))
    measured = points(found.models, record(), "bench.json")
    text = markdown(found, findings(found.models, {}), measured)
    assert "| layers | 12 | 24 |" in text
    assert "| Dropout removed |" in text
    assert "| gpt-oss-20b | 8 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)
