"""What the documents say exists: files they link to, commands and options they show."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from ossia.cli.main import app
from recipes.stdlib import command as recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_merge_was_left_half_done(document):
    lines = document.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(("<<<<<<< ", ">>>>>>> "))] == []


def commands(document):
    for block in re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["ossia"]:
                yield typer.main.get_command(app), words[1:]
            elif words[:3] == ["python", "-m", "recipes.stdlib"]:
                yield typer.main.get_command(recipe.app), words[3:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_have_the_options_they_are_shown_with(document):
    for group, (name, *arguments) in commands(document):
        assert isinstance(group, TyperGroup)
        command = group.commands[name]
        if isinstance(command, TyperGroup) and arguments and arguments[0] in command.commands:
            name, *arguments = arguments
            command = command.commands[name]
        elif isinstance(command, TyperGroup):
            assert command.invoke_without_command, f"{name} needs a command"
        command.make_context(name, arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_is_python(document):
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, document.name, "exec")
