"""Diagrams are in scale, and their texts lie apart, whatever the models and their names."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ossia.config import LayerConfig, MLPConfig, SwiGLU
from ossia.families import PRESETS
from ossia.insight import diagrams, drawing
from ossia.insight.compare import Setting, compare
from ossia.insight.compare_page import files, pictures
from ossia.insight.facts import Model
from ossia.insight.hardware import HARDWARE
from tests.insight.drawings import SVG, parse, place, rects, size, texts, troubles

LONG = "a-mixture-of-experts-with-a-rather-long-name-indeed-128e-instruct-2507"


def models(*names: str) -> list[Model]:
    return [Model(name, PRESETS[name]) for name in names]


def mixed() -> Model:
    """Half dense, half experts; one layer of four has a window, and all have sinks."""
    config = PRESETS["gpt-oss-20b"]
    attention = replace(config.layers[0].attention, window=None)
    dense = LayerConfig(attention, MLPConfig(8 * 2880, SwiGLU()))
    layers = (config.layers[0], replace(config.layers[0], attention=attention), dense, dense) * 2
    return Model("half dense, half experts", replace(config, layers=layers))


CROWDS = {
    "one": models("gpt-oss-120b"),
    "the article's first": models("gpt2-xl", "gpt-oss-20b"),
    "128 experts twice": models("gpt-oss-120b", "qwen3-235b-a22b"),
    "a long name": [Model(LONG, PRESETS["qwen3-30b-a3b"]), *models("gpt2")],
    "mixed layers": [mixed(), *models("qwen3-0.6b")],
    "six": models("gpt2", "gpt2-xl", "qwen3-0.6b", "qwen3-32b", "gpt-oss-20b", "qwen3-235b-a22b"),
    "the same twice": [*models("qwen3-4b"), Model("copy", PRESETS["qwen3-4b"])],
}


def drawn(crowd: str) -> dict[str, str]:
    hardware = (HARDWARE["h100"], HARDWARE["m4-max"])
    return pictures(compare(CROWDS[crowd], Setting(1024, hardware=hardware)))


@pytest.mark.parametrize("crowd", CROWDS)
def test_no_text_lies_on_another_or_outside(crowd: str) -> None:
    found = {name: troubles(parse(picture)) for name, picture in drawn(crowd).items()}
    assert {name: problems for name, problems in found.items() if problems} == {}


@pytest.mark.parametrize("crowd", ["one", "a long name", "six"])
def test_a_file_stands_alone(crowd: str) -> None:
    for name, text in files(compare(CROWDS[crowd], Setting(1024))).items():
        root = parse(text)
        assert name.endswith(".svg")
        assert troubles(root) == []
        style = root.findtext(f"{SVG}style") or ""
        assert "prefers-color-scheme: dark" in style
        for variable in ("--ink", "--paper", "--attention", "--network"):
            assert style.count(f"{variable}:") == 2  # light and dark
        assert "url(" not in text
        assert "href" not in text


def test_pictures_are_named_for_those_who_do_not_see_them() -> None:
    names = set()
    for picture in drawn("the article's first").values():
        root = parse(picture)
        named = {x.get("id"): x.text or "" for x in root if x.get("id")}
        title, description = (root.get("aria-labelledby") or "").split()
        assert named[title]
        assert "gpt-oss-20b" in named[description]
        names |= {title, description}
    assert len(names) == 2 * len(drawn("the article's first"))


def test_a_name_that_does_not_fit_is_cut_and_shown_on_hover() -> None:
    root = parse(diagrams.shape(CROWDS["a long name"]))
    title = next(x for x in root.iter(f"{SVG}text") if x.findtext(f"{SVG}title") == LONG)
    (shown,) = (box.words for box in texts(root) if box.words.startswith("a-mix"))
    assert shown == "".join(title.itertext()).removeprefix(LONG)
    start, _, end = shown.partition("…")
    assert LONG.startswith(start)
    assert LONG.endswith(end)


def test_width_and_depth_are_in_scale() -> None:
    root = parse(diagrams.shape(models("gpt2-xl", "qwen3-235b-a22b")))
    stripes = rects(root, "attention")
    assert len(stripes) == 48 + 94
    narrow, wide = stripes[:48], stripes[48:]
    assert size(wide[0])[0] / size(narrow[0])[0] == pytest.approx(4096 / 1600, rel=0.01)

    def height(found: list) -> float:
        return place(found[0])[1] - place(found[-1])[1]

    assert height(wide) / height(narrow) == pytest.approx(93 / 47, rel=0.01)


def test_layers_with_windows_are_paler() -> None:
    root = parse(diagrams.shape(models("gpt-oss-20b")))
    assert len(rects(root, "attention half")) == 12 + 1  # and its place in the legend
    assert len(rects(root, "attention")) == 12 + 1


def test_experts_are_in_scale_and_the_active_ones_filled() -> None:
    root = parse(diagrams.experts(models("gpt-oss-120b", "qwen3-30b-a3b")))
    filled, pale = rects(root, "network"), rects(root, "network pale")
    assert (len(filled), len(pale)) == (4 + 8, 124 + 120)
    (large, _), (little, _) = size(filled[0]), size(filled[-1])
    expert = 3 * 2880 * 2880 + 3 * 2880, 3 * 2048 * 768
    assert (large / little) ** 2 == pytest.approx(expert[0] / expert[1], rel=0.03)


def test_a_dense_network_is_one_filled_square() -> None:
    root = parse(diagrams.experts(models("gpt2-xl")))
    assert len(rects(root, "network")) == 1
    assert rects(root, "network pale") == []


def test_windows_are_in_scale() -> None:
    root = parse(diagrams.attention(models("gpt-oss-20b")))
    full, window = sorted((area(p) for p in root.iter(f"{SVG}polygon")), reverse=True)
    # Of a text of four windows: half a square, less the triangle that a window leaves out.
    assert window / full == pytest.approx(1 - (3 / 4) ** 2, rel=0.01)
    assert len(rects(root, "sink")) == 2
    assert len(rects(root, "cache")) == 8
    assert len(rects(root, "attention")) == 64


def area(polygon) -> float:
    points = [tuple(map(float, p.split(","))) for p in polygon.get("points").split()]
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2


def test_areas_are_parameters() -> None:
    """gpt-oss-20b beside gpt2-xl: squares in the ratio of their parameters; an eighth of the
    experts is filled.
    """
    root = parse(diagrams.parameters(models("gpt2-xl", "gpt-oss-20b")))
    experts = rects(root, "network pale")
    assert len(experts) == 1
    width, height = size(experts[0])
    (used,) = (r for r in rects(root, "network") if place(r) == place(experts[0]))
    assert size(used)[0] / width == pytest.approx(1 / 8, rel=0.01)
    part = 19_110_297_600 / 20_914_757_184
    assert height / width == pytest.approx(part, rel=0.01)
    dense = next(r for r in rects(root, "network") if size(r)[0] > 10 and place(r) != place(used))
    side = size(dense)[0]
    assert (width / side) ** 2 == pytest.approx(20_914_757_184 / 1_557_611_200, rel=0.02)


def test_a_knee_lies_on_its_line() -> None:
    root = parse(diagrams.bounds(models("gpt2-xl", "gpt-oss-20b"), HARDWARE["rtx-5090"], 1024))
    (dot,) = root.iter(f"{SVG}circle")
    (line,) = (x for x in root.iter(f"{SVG}polyline") if x.get("class") == "series m1")
    points = (line.get("points") or "").split()
    assert f"{dot.get('cx')},{dot.get('cy')}" in points


def test_what_differs_is_marked_in_blocks() -> None:
    def marked(*names: str) -> set[str]:
        root = parse(diagrams.blocks(models(*names)))
        kinds = [x for x in root.iter(f"{SVG}text") if "mark" in (x.get("class") or "").split()]
        return {"".join(x.itertext()) for x in kinds}

    assert marked("gpt-oss-20b", "gpt-oss-120b") == {
        "4 of 32 experts",
        "4 of 128 experts",
        "\N{MULTIPLICATION SIGN} 24 layers",
        "\N{MULTIPLICATION SIGN} 36 layers",
        "12 layers see 128 tokens",
        "12 layers see all",
        "18 layers see 128 tokens",
        "18 layers see all",
    }
    assert "LayerNorm" in marked("gpt2", "qwen3-0.6b")
    assert marked("gpt2") == set()


def test_texts_are_measured_and_cut() -> None:
    assert drawing.measure("iii") < drawing.measure("mmm")
    assert drawing.measure("abc", "bold") > drawing.measure("abc") > drawing.measure("abc", "small")
    assert drawing.shortened("short", 100) == "short"
    cut = drawing.shortened("a name that is too long", 60)
    assert drawing.measure(cut) <= 60
    assert drawing.wrapped("two words", 40) == ["two", "words"]
    assert drawing.wrapped("a\nb", 40) == ["a", "b"]
    assert not math.isnan(drawing.measure(""))
