"""Every command explains itself in the same way."""

import re

import pytest

COMMANDS = (
    "generate",
    "chat",
    "inspect",
    "train",
    "finetune",
    "quantize",
    "merge",
    "ablate",
    "bench",
)
SUBCOMMANDS = ("bench machine", "bench cpu")


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_help_ends_with_an_example_of_the_command(ossia_command, command):
    last = ossia_command(*command.split(), "--help").out.strip().rsplit("\n\n", 1)[-1]
    assert last.strip().startswith(f"Example: ossia {command} ")


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_an_option_names_its_value_and_not_a_python_type(ossia_command, command):
    options = ossia_command(*command.split(), "--help").out.partition("\nOptions:")[2]
    assert re.findall(r"<(?:str|int|float|path)>", options) == []


def test_the_list_of_commands_describes_each_in_one_whole_sentence(ossia_command):
    listed = ossia_command("--help").out.partition("\nCommands:\n")[2]
    lines = listed.splitlines()[: len(COMMANDS)]
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)
