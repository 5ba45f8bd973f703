"""Uploads through few buffers, whose copies lag behind, arrive whole."""

from __future__ import annotations

import pytest
import torch

from ossia.errors import OssiaError
from ossia.system.upload import Memory, Upload
from tests.links import Late


@pytest.mark.parametrize("buffers", [1, 3])
@pytest.mark.parametrize("threads", [1, 4])
def test_tensors_of_any_size_arrive_whole_and_in_any_order(buffers, threads):
    generator = torch.Generator().manual_seed(0)
    shapes = [(0, 3), (1,), (64,), (65,), (17, 31), (3, 5, 129)]
    dtypes = [torch.uint8, torch.bfloat16, torch.float32]
    tensors = [
        torch.randint(0, 250, shape, generator=generator).to(dtype)
        for shape in shapes
        for dtype in dtypes
    ]
    link = Late()
    with Upload(link, piece=64, buffers=buffers, threads=threads) as upload:
        arriving = [upload.start(Memory(x), tuple(x.shape), x.dtype) for x in tensors]
        for x, there in reversed([*zip(tensors, arriving, strict=True)]):
            assert torch.equal(there.tensor(), x)
    assert link.sent == sum(-(-x.nbytes // 64) for x in tensors)
    assert link.begun == sum(x.nbytes > 0 for x in tensors)


def test_it_may_be_used_while_a_model_computes():
    """Tensors of inference mode are written by threads that are not in it."""
    x = torch.arange(1000)
    with torch.inference_mode(), Upload(Late(), piece=128, buffers=2) as upload:
        assert torch.equal(upload.start(Memory(x), (1000,), x.dtype).tensor(), x)


def test_a_source_that_fails_is_said_once_it_is_asked_for():
    class Broken:
        nbytes = 256

        def read(self, start: int, buffer: torch.Tensor) -> None:
            if start >= 128:
                raise OssiaError("the disk is gone")
            buffer.fill_(1)

    with Upload(Late(), piece=64, buffers=2) as upload:
        broken = upload.start(Broken(), (256,), torch.uint8)
        whole = upload.start(Memory(torch.arange(99)), (99,), torch.int64)
        with pytest.raises(OssiaError, match="the disk is gone"):
            broken.tensor()
        assert torch.equal(whole.tensor(), torch.arange(99))


def test_one_that_is_given_up_ends_at_once():
    """What was read is under way to memory that exists until the copies have taken place."""
    link = Late()
    upload = Upload(link, piece=64, buffers=2, threads=1)
    upload.start(Memory(torch.ones(10_000)), (10_000,), torch.float32)
    upload.close()
    assert link.sent <= 10_000 * 4 // 64
