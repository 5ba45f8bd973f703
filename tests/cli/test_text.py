"""Plain text on terminals of any width: words whole, nothing lost, nothing harmful."""

import random
import re
import signal
import sys

import pytest

from ossia.cli.stopping import until_interrupted
from ossia.cli.text import WordWrap, table, visible, wrapped

WIDTHS = (44, 80, 200)
TEXT = (
    "A paragraph of words, some-with-hyphens, https://example.org/a/long/address?query=1 and "
    "numbers 3,141,592.\n\n    indented code stays indented, and\tso does a tab\n" + "word " * 90
)


@pytest.fixture(params=WIDTHS)
def width(request, monkeypatch):
    monkeypatch.setattr("ossia.cli.text.columns", lambda _: request.param)
    return request.param


def written(pieces, width):
    output = []
    words = WordWrap(output.append, lambda: width)
    for piece in pieces:
        words.push(piece)
    words.finish()
    return "".join(output)


def in_pieces(text, seed):
    rng = random.Random(seed)
    while text:
        size = rng.choice([1, 2, 3, 7, 40])
        yield text[:size]
        text = text[size:]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", WIDTHS)
def test_a_stream_breaks_between_words_however_it_arrives(width, seed):
    text = written(in_pieces(TEXT, seed), width)
    assert text == written([TEXT], width)
    assert text.split() == TEXT.split()  # no word is broken, lost or doubled
    assert all(len(line.rstrip().expandtabs(8)) <= width for line in text.split("\n"))
    assert "\n\n    indented" in text


def test_only_blanks_where_a_line_breaks_are_lost():
    assert written(["one  two   three"], 9) == "one  two\nthree"
    assert written(["a \n b"], 9) == "a \n b"


def test_a_word_is_shown_when_it_is_complete_and_one_longer_than_a_line_at_once():
    output = []
    words = WordWrap(output.append, lambda: 10)
    words.push("hel")
    assert output == []
    words.push("lo ")
    assert output == ["hello"]
    words.push("x" * 12)
    assert "".join(output) == "hello\n" + "x" * 12
    words.push("yy z")  # two columns of the next row are taken
    assert "".join(output) == "hello\n" + "x" * 12 + "yy"


def test_a_line_may_break_between_chinese_characters_which_take_two_columns():
    assert written(["你好世界我很高兴"], 10) == "你好世界我\n很高兴"
    assert written(["ab你好"], 5) == "ab你\n好"


def test_a_terminal_that_becomes_narrower_is_followed():
    output, width = [], [80]
    words = WordWrap(output.append, lambda: width[0])
    words.push("word " * 4)
    width[0] = 20
    words.push("word " * 2)
    words.finish()
    assert "".join(output).split("\n") == ["word word word word", "word word "]


def test_it_knows_whether_a_line_has_begun():
    words = WordWrap(lambda _: None, lambda: 80)
    states = []
    for piece in ("", "a", "\n", " ", "\n"):
        words.push(piece)
        states.append(words.at_line_start)
    assert states == [True, False, True, False, True]


def test_remarks_are_wrapped_with_their_indentation(width):
    text = wrapped(TEXT.replace("\t", " "), sys.stdout)
    assert text.split() == TEXT.split()
    assert all(len(line) <= width for line in text.splitlines())


def test_a_table_keeps_its_columns_and_goes_below_each_other_where_it_is_narrow(width):
    rows = [("--a-name", "word " * 30), ("--an-even-longer-name", "short")]
    text = table(rows, sys.stdout)
    assert text.split() == " ".join(f"{a} {b}" for a, b in rows).split()
    assert all(len(line) <= width for line in text.splitlines())
    below = re.search(r"^--a-name$", text, re.MULTILINE) is not None
    assert below == (width == 44)


def test_control_characters_become_visible():
    assert visible("a\x1b[31mb\x07\tc\nd\x9b") == "a␛[31mb␇\tc\nd�"


def test_what_is_said_of_a_signal_is_wrapped(width, capfd):
    with until_interrupted() as stopped:
        signal.raise_signal(signal.SIGTERM)
        assert stopped()
    lines = capfd.readouterr().err.strip().splitlines()
    assert " ".join(lines) == "stopping after this step; a second Ctrl-C does not wait for it"
    assert max(map(len, lines)) <= width
