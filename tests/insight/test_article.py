"""The committed article is the one that the command in the documents writes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = (
    "ossia compare --article docs/compare --ladder docs/ablation "
    "--measured bench/results/2026-11-28"
)


def test_the_committed_pages_are_those_that_the_command_writes(
    ossia_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", shlex.split(COMMAND))
    arguments = [str(tmp_path) if w == "docs/compare" else w for w in shlex.split(COMMAND)[1:]]
    result = ossia_command(*arguments)
    assert result.code == 0, result.err
    written = {p.relative_to(tmp_path): p.read_bytes() for p in files(tmp_path)}
    committed = {p.relative_to(ROOT / "docs/compare"): p for p in files(ROOT / "docs/compare")}
    assert set(written) == set(committed)
    for name, content in written.items():
        assert committed[name].read_bytes() == content, f"{name}: run {COMMAND}"
        assert len(content) < 5_000_000


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_documents_give_that_command() -> None:
    assert COMMAND in (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
