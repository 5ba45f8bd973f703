"""The fences around the tensors of every other test are there: one step beyond is a failed test."""

import pytest
import torch

from tests.ops.cpu.common import Forms
from tests.ops.cpu.remote import Remote, noting_addresses


@pytest.fixture
def remotes(isa) -> list[Remote]:
    return [machine for machine in Forms(isa).machines if isinstance(machine, Remote)]


def test_a_step_beyond_a_tensor_kills_the_process_and_the_next_call_begins_anew(remotes):
    words = torch.arange(3)
    at_end, at_begin = remotes
    with noting_addresses():
        address = words.data_ptr()
        for machine in remotes:
            assert machine.sum(address, 3) == "3"
        with pytest.raises(AssertionError, match="died"):
            at_end.sum(address, 4)
        assert at_end.sum(address, 3) == "3"
        # A page further the memory that begins at a fence ends at one too.
        with pytest.raises(AssertionError, match="died"):
            at_begin.sum(address, 513)


def test_memory_that_no_tensor_names_is_not_guessed(remotes):
    with noting_addresses(), pytest.raises(AssertionError, match="no tensor"):
        remotes[0].sum(1 << 45, 1)
