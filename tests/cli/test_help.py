"""Every command explains itself in the same way."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from itertools import product

import pytest

from ossia.cli.generate import GenerateSampling
from ossia.eval.options import EvalOptions
from ossia.ladder.plan import Plan
from ossia.options import EngineOptions, LoadOptions, SamplingOptions
from ossia.serve.options import ServeOptions
from ossia.train.settings import FineTuneSettings, Settings

COMMANDS = (
    "generate",
    "chat",
    "serve",
    "inspect",
    "compare",
    "xray",
    "train",
    "finetune",
    "quantize",
    "merge",
    "ablate",
    "eval",
    "bench",
)
SUBCOMMANDS = ("eval compare", "bench machine", "bench cpu", "bench gpu")


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_help_ends_with_an_example_of_the_command(ossia_command, command):
    last = ossia_command(*command.split(), "--help").out.strip().rsplit("\n\n", 1)[-1]
    assert last.strip().startswith(f"Example: ossia {command} ")


@pytest.mark.parametrize("command", ["", "chat", "inspect"])
def test_an_example_that_needs_no_file_works(ossia_command, command: str) -> None:
    last = ossia_command(*command.split(), "--help").out.strip().rsplit("\n\n", 1)[-1]
    words = shlex.split(last.strip().removeprefix("Example: ossia "))
    assert words[0] == command or not command
    result = ossia_command(*words)
    assert result.code == 0, result.err
    assert result.out.strip()


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_an_option_names_its_value_and_not_a_python_type(ossia_command, command):
    options = ossia_command(*command.split(), "--help").out.partition("\nOptions:")[2]
    assert re.findall(r"<(?:str|int|float|path)>", options) == []


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_no_line_is_broken_within_the_name_of_an_option(ossia_command, command):
    shown = ossia_command(*command.split(), "--help").out
    assert re.findall(r"--[\w-]*-$", shown, re.MULTILINE) == []
    assert "\ue000" not in shown


def test_the_list_of_commands_describes_each_in_one_whole_sentence(ossia_command):
    listed = ossia_command("--help").out.partition("\nCommands:\n")[2]
    lines = listed.splitlines()[: len(COMMANDS)]
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("train", Settings),
        ("finetune", FineTuneSettings),
        ("ablate", Plan),
        *product(("generate", "chat", "serve", "bench cpu"), (LoadOptions, EngineOptions)),
        ("serve", ServeOptions),
        ("chat", SamplingOptions),
        *product(("eval",), (EvalOptions, SamplingOptions, LoadOptions, EngineOptions)),
        ("generate", GenerateSampling),
    ],
)
def test_every_setting_is_an_option_with_a_help_text_and_its_default(
    ossia_command, command: str, settings: type
):
    listed = ossia_command(*command.split(), "--help").out.partition("\nOptions:\n")[2]
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=  -)", listed)]
    for field in fields(settings):
        name = "--" + field.name.replace("_", "-")
        [entry] = [entry for entry in entries if name in re.split(r"[ ,/]+", entry)[:3]]
        default = field.default
        if isinstance(default, bool):
            assert not default or f"--no{name[1:]}" in entry, f"how is {name} turned off?"
        elif default in (None, 0, "", ()):  # either the value, or what it stands for
            assert "[default: " in entry or "required for a new run" in entry
        else:
            assert f"[default: {default}]" in entry
        assert re.search(r"[A-Za-z0-9]{2,}[^.]*\.", entry), f"{name} has no help text"


def test_help_does_not_wait_for_torch():
    program = """
import sys
from ossia.cli.main import main
for command in sys.argv[1:]:
    main([*command.split(), "--help"])
assert "torch" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", program, "", *COMMANDS, *SUBCOMMANDS],
        check=True,
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("width", [44, 80])
def test_help_fits_the_terminal(ossia_command, monkeypatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("ossia.cli.help.columns", lambda _: width)
    for command in ("", "chat", "bench cpu"):
        lines = ossia_command(*command.split(), "--help").out.splitlines()
        assert [line for line in lines if len(line) > width and len(line.split()) > 1] == []
        below = any(line.strip() == "-q, --quiet" for line in lines)
        assert below == (width == 44 and command == "chat")
