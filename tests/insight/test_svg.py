"""Plots are whole SVG, in scale, and say what they show."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from ossia.insight.svg import Heading, Interval, Line, intervals, lines, number, power

SVG = "{http://www.w3.org/2000/svg}"


def parse(drawing):
    return ElementTree.fromstring(
        drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    )


def place(element, coordinate):
    return float(element.get(coordinate))


def test_rows_lie_where_their_values_are():
    rows = [
        Interval("a", 1.0, 0.5, [0.75, 1.25]),
        Interval("b", 3.0, None),
        Interval("<c>", 2.0, 0.1),
    ]
    root = parse(intervals(Heading("p", "Title", "All of it"), rows, "metres", zero=True))
    a, b, c = (place(x, "cx") for x in root.iter(f"{SVG}circle") if x.get("class") == "mean")
    assert c == pytest.approx((a + b) / 2, abs=0.1)  # 2 lies between 1 and 3
    unit = (b - a) / 2
    bars = [x for x in root.iter(f"{SVG}line") if x.get("class") == "error"]
    assert len(bars) == 6  # two rows with an interval: a bar and its two ends each
    assert place(bars[0], "x1") == pytest.approx(a - unit / 2, abs=0.1)
    assert place(bars[0], "x2") == pytest.approx(a + unit / 2, abs=0.1)
    (zero,) = (x for x in root.iter(f"{SVG}line") if x.get("class") == "zero")
    assert place(zero, "x1") == pytest.approx(a - unit, abs=0.1)
    texts = [x.text for x in root.iter(f"{SVG}text")]
    assert {"a", "b", "<c>", "metres"} <= set(texts)


def test_a_plot_is_named_for_those_who_do_not_see_it():
    root = parse(
        lines(Heading("p", "Title", "All of it"), [Line("a", [(0, 1), (1, 2)])], ("x", "y"))
    )
    assert root.get("role") == "img"
    named = {x.get("id"): x.text for x in root if x.get("id")}
    assert [named[i] for i in root.get("aria-labelledby", "").split()] == ["Title", "All of it"]


def test_names_at_the_ends_of_lines_do_not_overlap():
    series = [
        Line(name, [(0, 0), (1, end)]) for name, end in (("a", 1.0), ("b", 1.001), ("c", 0.999))
    ]
    root = parse(lines(Heading("p", "t", "d"), series, ("x", "y")))
    places = sorted(place(x, "y") for x in root.iter(f"{SVG}text") if x.text in ("a", "b", "c"))
    assert min(b - a for a, b in pairwise(places)) >= 12


def test_numbers_are_written_for_people():
    assert number(-1234.5, 1) == "\N{MINUS SIGN}1,234.5"
    assert number(0.00001, 3, sign=True) == "0.000"
    assert number(0.25, 2, sign=True) == "+0.25"
    assert power(3.4e12) == (1e12, "10¹²")
    assert power(0.02) == (1e-3, "10⁻³")
