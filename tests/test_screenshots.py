"""The pictures of pages in docs/ can be taken anew; pixels may differ, as fonts do."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve import chromium

ROOT = Path(__file__).parents[1]


def size(picture: Path) -> tuple[int, int]:
    """Width and height that a PNG's header states."""
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


def test_the_screenshots_are_taken_anew(tmp_path: Path) -> None:
    if chromium.find() is None:
        pytest.skip("there is no Chromium")
    command = [sys.executable, "-m", "book.screenshots", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    taken = sorted(path.name for path in tmp_path.iterdir())
    assert taken == sorted(path.name for path in (ROOT / "docs").glob("*.png"))
    for name in taken:
        width, height = size(tmp_path / name)
        assert width == size(ROOT / "docs" / name)[0]
        assert height == pytest.approx(size(ROOT / "docs" / name)[1], rel=0.2)
    light, dark = (tmp_path / name for name in ("xray.png", "xray-dark.png"))
    assert light.read_bytes() != dark.read_bytes()
