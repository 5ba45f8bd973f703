"""The checkpoint that most of these tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_checkpoints import GPT_OSS_CONFIG, gpt_oss_tensors, write


@pytest.fixture
def gpt_oss(tmp_path: Path) -> Path:
    """A gpt-oss checkpoint with packed experts in the hub's layout."""
    return write(tmp_path / "gpt-oss", GPT_OSS_CONFIG, gpt_oss_tensors())
