"""The shell and Python blocks of README.md and docs/ run, in order, page by page.

A line that cannot run here is marked by a comment before its block, which names what stands in the
line and says why: <!-- not run: torchrun, make (minutes) -->; * is all of it. Checkpoints that
a reader would download are links to the model inside the package, and training is shorter.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import ossia
from ossia.checkpoint import packaged_model
from recipes.stdlib import command as recipe

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"(?P<marks>(?:<!-- not run: [^\n]+ -->\n+)*)^```(?P<language>sh|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"<!-- not run: (?P<words>.+) \((?P<why>[^()]+)\) -->")
_ADDRESS = "127.0.0.1:8000"  # of the reader's server
_CHECKPOINTS = (
    *("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main", "Qwen/Qwen3-8B", "openai-community/gpt2"),
    *("openai/gpt-oss-20b", "openai/gpt-oss-120b"),
    *("path/to/checkpoint", "path/to/gpt-oss-20b", "path/to/gpt-oss-120b"),
)
# Added to commands, so that each takes a second or two: later options count.
_SHORTER = {
    "ablate": "--data notes.txt --rungs rope --layers 2 --vocab-size 300 --length 32 "
    "--batch-size 1 --steps 2 --seeds 1 --turns 1 --threads 1",
    "chat": "--max-tokens 64",
    "eval": "--limit 1 --max-tokens 64",
    "finetune": "--steps 2 --batch-size 1 --length 256 --too-long truncate --threads 1",
    "generate": "--max-tokens 8",
    "serve": "--port 0 --kv-memory 64MiB",
    "train": "--data notes.txt --config tiny.json --steps 2 --batch-size 1 --length 32 "
    "--vocab-size 400 --threads 1",
    "xray": "--no-effects --reply 8",
}
_SHORTER_RECIPES = {"write": "--count 4 --held-out 1"}
_CHAT = [
    {"role": "user", "content": "Spell banana."},
    {"role": "assistant", "reasoning": "Letters: b a n a n a.", "content": "b-a-n-a-n-a"},
]


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    skipped: tuple[str, ...]  # words whose lines are not run

    @property
    def lines(self) -> list[str]:
        """The commands to run; of Python all or nothing."""
        joined = (
            self.code.replace("\\\n", " ").splitlines() if self.language == "sh" else [self.code]
        )
        runs = [line for line in joined if line.strip()]
        if "*" in self.skipped:
            return []
        return [line for line in runs if not any(word in line for word in self.skipped)]


def blocks(page: Path) -> Iterator[Block]:
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        marks = _MARK.findall(found["marks"])
        words = tuple(word for words, _ in marks for word in words.split(", "))
        yield Block(found["language"], found["code"], words)


PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if any(block.lines for block in blocks(page))
]


@pytest.mark.parametrize(
    "page", [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"], ids=lambda p: p.stem
)
def test_a_mark_is_one_and_skips_something(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- not run") == len(_MARK.findall(text))
    for block in blocks(page):
        for word in block.skipped:
            assert word == "*" or word in block.code, f"{word} is not in {block.code}"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of the model inside the package."""
    from ossia.serve.app import application
    from ossia.serve.responses.store import ResponseStore
    from ossia.serve.service import Service
    from tests.serve.conftest import run

    with ossia.LLM(kv_memory="256MiB") as llm:
        port, stop = run(application(Service(llm, "ossia-stdlib"), store=ResponseStore()))
        yield f"127.0.0.1:{port}"
        stop()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages speak of, and nothing that reaches the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in _CHECKPOINTS:
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(packaged_model(), target_is_directory=True)
    source = (ROOT / "ossia" / "config.py").read_text(encoding="utf-8")
    for name in ("notes.txt", "essay.txt", "book.txt"):
        (tmp_path / name).write_text(source[:300] if name == "essay.txt" else source)
    config = json.loads((packaged_model() / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 2, "layer_types": config["layer_types"][:2]}
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    conversation = json.dumps({"messages": _CHAT})
    (tmp_path / "chats.jsonl").write_text(f"{conversation}\n" * 4)
    (tmp_path / "chat.json").write_text(json.dumps(_CHAT[:1]))
    question = {"question": "What is 2 + 2?", "answer": 4, "scorer": "number"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_blocks_run(page: Path, desk: Path, ossia_command, request, monkeypatch, capsys) -> None:
    monkeypatch.setattr("ossia.serve.server.serve", lambda *_: None)  # what it would do, is done
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        for code in block.lines:
            if _ADDRESS in code:
                code = code.replace(_ADDRESS, request.getfixturevalue("server"))
            if block.language == "python":
                exec(compile(code, page.name, "exec"), names)
                printed += capsys.readouterr().out
                continue
            monkeypatch.setattr(sys, "stdin", io.StringIO("What is 2 + 2?\n"))
            torch.set_num_threads(1)
            run_line(code, ossia_command, desk)
    if page.name == "README.md":
        assert (desk / "copy" / "tokenizer.json").is_file()
        assert "7 * 8 = 56." in printed


def run_line(line: str, ossia_command, folder: Path) -> None:
    words = shlex.split(line, comments=True)
    if not words or (shutil.which(words[0]) is None and words[0] == "curl"):
        return
    if words[:3] == ["python", "-m", "recipes.stdlib"]:
        words, options, commands = words[3:], _SHORTER_RECIPES, {"commands": recipe.app}
    elif words[0] == "ossia" and not {"|", ">", "<", "&"} & set(words):
        words, options, commands = words[1:], _SHORTER, {}
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-ec", line], cwd=folder, check=True, env=os.environ | {"PATH": path}
        )
        return
    more = [] if _goes_on(words, folder) else options.get(words[0], "").split()
    result = ossia_command(*words, *more, **commands)
    assert result.code == 0, f"{line}\n{result.err}"


def _goes_on(words: list[str], folder: Path) -> bool:
    """Whether it goes on with a run, whose settings are fixed."""
    return words[0] in ("ablate", "train") and any((folder / word).is_dir() for word in words)
