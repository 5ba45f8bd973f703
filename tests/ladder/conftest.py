"""Ladders that train in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ossia.ladder.plan import Plan
from tests.training import TEXT


def small_plan(folder: Path, **values: object) -> Plan:
    """A plan over `TEXT`, written to the folder."""
    (folder / "text.txt").write_text(TEXT)
    sizes = {"layers": 1, "hidden": 96, "vocab_size": 300, "length": 16, "batch_size": 2}
    return Plan(**{"data": str(folder / "text.txt"), "seeds": 2, **sizes, **values})


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return small_plan(tmp_path, rungs="rope", steps=12)
