"""A stop string ends a text, and no character of it is shown, however the text arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.errors import OssiaError
from ossia.text import StopStrings


def stream(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop = StopStrings(stops)
    shown, stopped = "", False
    for piece in pieces:
        text, stopped = stop.push(piece)
        shown += text
        if stopped:
            break
    return shown + stop.finish(), stopped


def test_a_partial_match_waits_and_is_shown_when_it_fails():
    stop = StopStrings(["END"])
    assert stop.push("the E") == ("the ", False)
    assert stop.push("N") == ("", False)
    assert stop.push("d, E") == ("ENd, ", False)
    assert stop.finish() == "E"


def test_the_stop_string_and_what_follows_are_not_shown():
    stop = StopStrings(["\n\n", "User:"])
    assert stop.push("Hi.\n") == ("Hi.", False)
    assert stop.push("\nUser: more") == ("", True)
    assert stop.push("still more") == ("", True)
    assert stop.finish() == ""


def test_the_string_that_completes_first_counts_and_of_those_the_longest():
    assert stream(["bcd", "c"], ["abcd"]) == ("ab", True)
    assert stream(["bc", "abc"], ["xabc"]) == ("x", True)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(OssiaError, match="empty"):
        StopStrings(["x", ""])


words = st.text("ab", min_size=1, max_size=4)


@given(st.lists(words, max_size=3), st.lists(st.text("ab", max_size=3), max_size=10))
def test_however_text_is_cut_the_result_is_the_same(stops, pieces):
    text = "".join(pieces)
    ends = [
        (end, -len(stop))
        for end in range(len(text) + 1)
        for stop in stops
        if text[:end].endswith(stop)
    ]
    end, length = min(ends, default=(len(text), 0))
    assert stream(stops, pieces) == (text[: end + length], bool(ends))
