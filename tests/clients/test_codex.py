"""The Codex command line: a task that writes a file, over the Responses that it speaks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clients.conftest import Scripted
from tests.clients.scripts import call, final

CONFIG = """
model = "{model}"
model_provider = "ossia"

[model_providers.ossia]
name = "ossia"
base_url = "{url}"
wire_api = "responses"
"""

PATCH = """apply_patch <<'EOF'
*** Begin Patch
*** Add File: notes.txt
+One word.
*** End Patch
EOF
"""


@pytest.fixture
def home(node) -> Iterator[Path]:
    """CODEX_HOME, which Codex refuses to have under the system's temporary folder."""
    folder = node / "codex"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def codex(home: Path, scripted: Scripted, folder: Path, task: str) -> subprocess.CompletedProcess:
    """What Codex prints, and with which status it ends, when it is given a task in a folder."""
    (home / "config.toml").write_text(CONFIG.format(model=scripted.model, url=scripted.url))
    command = [str(home.parent / "node_modules" / ".bin" / "codex"), "exec", "--json"]
    command += ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", task]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "CODEX_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )


def shell(command: str) -> str:
    """A call of the function by which Codex runs a command."""
    return call("exec_command", json.dumps({"cmd": command}))


def test_a_task_that_edits_a_file_and_makes_another(scripted, home, tmp_path):
    (tmp_path / "greeting.txt").write_text("Hello, word!\n")
    scripted(
        shell("cat greeting.txt"),
        shell("sed -i s/word/world/ greeting.txt"),
        shell(PATCH),
        final("The typing error is mended."),
    )
    done = codex(home, scripted, tmp_path, "Mend the typing error in greeting.txt")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "greeting.txt").read_text() == "Hello, world!\n"
    assert (tmp_path / "notes.txt").read_text() == "One word.\n"
    told = [json.loads(line) for line in done.stdout.splitlines()]
    items = [event["item"] for event in told if event["type"] == "item.completed"]
    assert items[-1]["type"] == "agent_message"
    assert items[-1]["text"] == "The typing error is mended."
    assert told[-1]["type"] == "turn.completed"
    assert told[-1]["usage"]["output_tokens"] > 0
    prompts = scripted.prompts
    assert len(prompts) == 4
    assert "Mend the typing error" in prompts[0]
    assert "Hello, word!" in prompts[1]  # the result of the first call
    assert prompts[2].startswith(prompts[1])  # whose pages the cache has
    assert prompts[3].count("Look.") == 3  # what was thought before each call


def test_an_error_of_the_server_is_shown(scripted, home, tmp_path):
    done = codex(home, replace(scripted, model="other"), tmp_path, "Mend the typing error")
    assert done.returncode != 0
    assert "The model 'other' does not exist; this server has 'scripted'." in done.stdout
