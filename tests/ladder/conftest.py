"""A text and ladders that train in seconds; one thread, so that sums are reproducible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ossia.ladder.run import Plan

TEXT = "".join(f"{i} green bottles hanging on the wall, and if one falls\n" for i in range(300))


def small_plan(folder: Path, **values: object) -> Plan:
    """A plan over `TEXT`, written to the folder."""
    (folder / "text.txt").write_text(TEXT)
    sizes = {"layers": 1, "hidden": 96, "vocab_size": 300, "length": 16, "batch_size": 2}
    return Plan(**{"data": str(folder / "text.txt"), "seeds": 2, **sizes, **values})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return small_plan(tmp_path, rungs="rope", steps=12)
