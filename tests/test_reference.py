"""The reference that the book generates has every command, option and public name."""

from __future__ import annotations

import inspect
import re

import pytest
import typer
from typer.core import TyperGroup

import ossia
import ossia.options
from book import reference
from ossia.cli.main import app


def sections(page: str) -> dict[str, str]:
    """The text below each heading, by its title."""
    parts = re.split(r"^#+ (.*)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def commands() -> dict[str, str]:
    return sections(reference.commands())


@pytest.fixture(scope="module")
def python() -> dict[str, str]:
    return sections(reference.python())


def every_command():
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        yield f"ossia {name}", command
        if isinstance(command, TyperGroup):
            for inner, nested in command.commands.items():
                yield f"ossia {name} {inner}", nested


@pytest.mark.parametrize(("name", "command"), [*every_command()], ids=lambda value: str(value))
def test_a_command_has_each_of_its_options_with_a_meaning(commands, name, command) -> None:
    rows = [line.split(" | ") for line in commands[name].splitlines() if line.startswith("| `")]
    assert all(len(row) == 3 and row[1].strip() for row in rows)
    spellings = " ".join(row[0] for row in rows)
    for parameter in command.params:
        if not getattr(parameter, "hidden", False) and parameter.param_type_name == "option":
            for spelling in parameter.opts:
                assert re.search(rf"{spelling}\b", spellings), spelling


def test_every_public_name_has_its_place(python) -> None:
    listed = [name for names in reference.SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(ossia.__all__)
    assert set(listed) <= set(python)


def test_public_methods_have_signatures_and_words(python) -> None:
    for name in reference.SECTIONS["Talking with a model"]:
        for member, value in vars(getattr(ossia, name)).items():
            if inspect.isfunction(value) and not member.startswith("_"):
                text = python[f"{name}.{member}"]
                assert f"{name}.{member}(" in text
                assert text.rpartition("```")[2].strip(), f"{name}.{member}"
    assert "    **options: Unpack[ChatOptions],\n) -> Reply" in python["LLM.chat"]


def test_values_in_tables_are_those_of_the_code(python) -> None:
    assert "| `page_size` |" in python["EngineOptions"]
    assert f"| `{ossia.options.EngineOptions.page_size}` |" in python["EngineOptions"]
