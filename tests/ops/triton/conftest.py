"""Kernels run on a card if there is one, and else by Triton's interpreter on the CPU.

`pytest -m gpu` takes the tests that use a card: every test with the `device` fixture, and those
marked gpu, which are too large for the interpreter and are skipped without a card.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

ON_CARD = os.environ.get("TRITON_INTERPRET") != "1"  # tests/conftest.py sets it

if importlib.util.find_spec("triton") is None:  # it is for Linux
    collect_ignore_glob = ["test_*"]
elif not ON_CARD:
    from tests.ops.triton import interpreter

    interpreter.correct()


# numpy, which interprets, warns of what a card computes in silence.
QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if ON_CARD else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(QUIET)
        if "device" in getattr(item, "fixturenames", ()) and ON_CARD:
            item.add_marker(pytest.mark.gpu)
        elif item.get_closest_marker("gpu") and not ON_CARD:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA card, and torch sees none"))
