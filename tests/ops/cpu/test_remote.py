"""The fences around the tensors of every other test are there: one step beyond is a failed test."""

import pytest
import torch

from tests.ops.cpu import remote
from tests.ops.cpu.common import Forms
from tests.ops.cpu.remote import Remote


@pytest.fixture
def remotes(isa) -> list[Remote]:
    return [machine for machine in Forms(isa).machines if isinstance(machine, Remote)]


def test_a_step_beyond_a_tensor_kills_the_process_and_the_next_call_begins_anew(
    remotes, monkeypatch
):
    words = torch.arange(513)
    at_end, at_begin = remotes
    for machine in remotes:
        assert machine.sum(words[:3]) == "3"
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_extent", lambda tensor: 3 * 8)  # less than the shape says
        with pytest.raises(AssertionError, match="died"):
            at_end.sum(words[:4])
        assert at_end.sum(words[:3]) == "3"
        # A page further the memory that begins at a fence ends at one too.
        with pytest.raises(AssertionError, match="died"):
            at_begin.sum(words)
