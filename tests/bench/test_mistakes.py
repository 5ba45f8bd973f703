"""A mistake in the command of a measurement is one clear line, and exit code 2."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ossia.ops._native", reason="some scripts measure the native module")

MEMORY = Path(__file__).parents[2] / "bench" / "memory.py"


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("attention", ["--queries", "0"], "--lengths and --queries must be at least 1"),
        ("disk", ["nowhere"], "nowhere holds no .safetensors file of 52 MiB to read from"),
        ("disk", ["nowhere", "--tokens", "3"], "--tokens must be at least 4"),
        ("lora", ["--device", "abacus"], "argument --device: invalid device value: 'abacus'"),
        ("lora", ["--layers", "0"], "--layers must be at least 1"),
        ("mxfp4_training", ["--seeds", "0"], "--seeds must be at least 1"),
        ("precision", ["--chats", "0"], "--chats must be at least 1"),
        ("sampling", ["--backend", "abacus"], "unknown backend 'abacus'"),
        ("sampling", ["--turns", "0"], "--turns must be at least 1"),
        ("speculation", ["--model", "./nowhere"], "there is no folder ./nowhere"),
        ("train", ["gpt2", "--turns", "0"], "--turns must be at least 1"),
    ],
)
def test_it_is_one_line(
    script: str, words: list[str], says: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"bench.{script}").main()
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{script}: error: {says}")


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys) -> None:
    train = importlib.import_module("bench.train")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["train", "gpt2"])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    assert "transformers is not installed" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_ends_as_its_command_does_or_says_why_it_cannot_run(tmp_path: Path) -> None:
    def measured(*command: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(MEMORY), *command]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    done = measured("sh", "-c", "exit 3")
    assert done.returncode == 3
    assert '"seconds"' in done.stdout
    for command, why in (("nowhere", "No such file or directory"), ("/", "Permission denied")):
        done = measured(command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: cannot run {command}: {why}\n"
