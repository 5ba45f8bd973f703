"""Memory in huge pages: what a tensor in it is, on any system."""

import mmap

import pytest
import torch

from ossia.system import huge_pages


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 5, 7), (), (0, 4)])
def test_zeros_are_those_of_torch(shape, dtype):
    found = huge_pages.zeros(shape, dtype)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.equal(found, torch.zeros(shape, dtype=dtype))
    assert torch.equal(found.fill_(1), torch.ones(shape, dtype=dtype))


def test_memory_lives_as_long_as_the_tensor():
    part = huge_pages.zeros((1 << 20,), torch.uint8)[17:]
    assert torch.equal(part.fill_(3), torch.full(part.shape, 3, dtype=torch.uint8))


def test_a_system_without_huge_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert not huge_pages.zeros((8,), torch.float32).any()
