"""Options of a command that come from dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest
import typer

from ossia.cli.fields import Given, derived
from ossia.cli.main import main
from ossia.options import Option, Options


class Color(StrEnum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@dataclass(frozen=True)
class Paint(Options):
    color: Annotated[Color, Option("Of the wall.", names=("-c",))] = Color.RED
    second: Annotated[Color | None, Option("Of the door.", default="as the wall")] = None
    coats: Annotated[int, Option("Of paint.", names=("--layers",), minimum=1)] = 2
    shine: Annotated[float, Option("From 0 to 1.", maximum=1)] = 0.5
    tin: Annotated[Path | None, Option("Where the paint is.")] = None
    memory: Annotated[int | str | None, Option("How much.", metavar="SIZE")] = None
    dry: Annotated[bool, Option("Wait for it to dry.")] = False
    primer: Annotated[bool, Option("Begin with primer.")] = True
    wall: Annotated[bool, Option("Paint the wall, or all.", off="--all")] = True
    unseen: int = 3


@dataclass(frozen=True)
class Tools(Options):
    brush: Annotated[str, Option("To paint with.")] = "broad"


@pytest.fixture
def run(capsys):
    """Run a command with a parameter of each kind; what it received, or its error."""
    received = {}

    @derived
    def paint(
        room: Annotated[str, typer.Argument(metavar="ROOM", help="To paint.")],
        paint: Paint,
        tools: Given[Tools],
        quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing.")] = False,
    ) -> None:
        """Paint a room."""
        received.update(room=room, paint=paint, tools=tools, quiet=quiet)

    app = typer.Typer(name="paint", rich_markup_mode=None, add_completion=False)
    app.command()(paint)

    def run(*words: str):
        received.clear()
        code = main(words, app)
        captured = capsys.readouterr()
        return code, received, captured.out + captured.err

    return run


def test_a_command_receives_the_defaults(run):
    code, received, _ = run("hall")
    assert code == 0
    assert received["paint"] == Paint()
    assert received["tools"].build() == Tools()
    assert received["tools"].asked == {}
    assert (received["room"], received["quiet"]) == ("hall", False)


def test_a_command_receives_what_was_typed(run):
    words = "hall -c dark-blue --second red --layers 3 --shine 0.25 --tin a/b --memory 4GiB --dry"
    code, received, _ = run(*words.split(), "--no-primer", "--all", "--brush", "fine", "--quiet")
    assert code == 0
    assert received["paint"] == Paint(
        color=Color.DARK_BLUE,
        second=Color.RED,
        coats=3,
        shine=0.25,
        tin=Path("a/b"),
        memory="4GiB",
        dry=True,
        primer=False,
        wall=False,
    )
    assert received["tools"].asked == {"brush": "fine"}
    assert received["tools"].build() == Tools("fine")
    assert received["quiet"]


def test_help_shows_each_option_with_its_names_value_text_and_default(run):
    code, received, output = run("--help")
    assert code == 0
    assert received == {}
    # Before 0.27, typer drew choices as [a|b] and escaped default values' brackets.
    shown = " ".join(
        output.replace("[red|dark-blue]", "<red|dark-blue>").replace("\\[", "[").split()
    )
    for text in (
        "-c, --color <red|dark-blue> Of the wall. [default: red]",
        "--second <red|dark-blue> Of the door. [default: as the wall]",
        "--coats, --layers N Of paint. [default: 2]",
        "--shine X From 0 to 1. [default: 0.5]",
        "--tin PATH Where the paint is. --memory SIZE How much. --dry Wait for it to dry. --primer",
        "--primer / --no-primer Begin with primer. [default: primer]",
        "--wall / --all Paint the wall, or all. [default: wall]",
        "--brush TEXT To paint with. [default: broad] --quiet Say nothing.",
    ):
        assert text in shown
    assert "unseen" not in shown
    assert "context" not in shown


def test_a_value_out_of_bounds_is_one_line_and_exit_code_2(run):
    code, received, output = run("hall", "--coats", "0")
    assert (code, received) == (2, {})
    assert output == "error: --coats must be at least 1, not 0\n"


@pytest.mark.parametrize(
    ("option", "text", "kind"),
    [
        ("--coats", "many", "a whole number"),
        ("--coats", "1.5", "a whole number"),
        ("--shine", "much", "a number"),
    ],
)
def test_a_value_that_is_no_number_is_named(run, option, text, kind):
    code, received, output = run("hall", option, text)
    assert (code, received) == (2, {})
    assert option in output
    assert f"{text!r} is not {kind}." in output


def test_two_options_of_one_name_are_a_mistake():
    with pytest.raises(ValueError, match="duplicate parameter name"):

        @derived
        def paint(paint: Paint, coats: Annotated[int, typer.Option(help="Of paint.")]) -> None: ...
