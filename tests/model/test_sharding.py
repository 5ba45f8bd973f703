"""Two processes, each with its share of a model, compute what one does."""

import pickle

import pytest
import torch

from ossia.model.sharding import Rank, check, shard
from ossia.ops import REFERENCE
from ossia.ops.mxfp4 import quantize
from ossia.ops.ranks import across, cut
from tests.models import build, gpt2_like, gpt_oss_like, qwen3_like
from tests.torchrun import run_together


def test_two_processes_give_the_logits_of_one(tmp_path):
    done = run_together(["-m", "tests.model.ranks", str(tmp_path / "logits")])
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    found = torch.load(tmp_path / "logits")
    assert {case.partition(",")[0] for case in found} == {
        "gpt2", "qwen3", "qwen3-one-key-head", "qwen3-moe", "gpt-oss", "gpt-oss-packed"
    }  # fmt: skip
    for case, (together, alone) in found.items():
        # Sums in another order, of float32; the native kernels' integers are as exact.
        error = (together - alone).norm() / alone.norm()
        assert error < 2e-6, case
        assert error > 0, case  # a sum of two parts, in the end


@pytest.mark.parametrize(
    ("config", "rank", "problem"),
    [
        (gpt2_like(), Rank(0, 2), "3 heads do not divide among 2 processes"),
        (gpt_oss_like(), Rank(0, 2, whole_experts=True), None),
        (qwen3_like(), Rank(0, 2), None),
        (qwen3_like(), Rank(0, 3), "2 heads of keys do not divide among 3 processes"),
        (qwen3_like(), Rank(0, 4), "6 heads do not divide among 4 processes"),
    ],
)
def test_models_that_do_not_divide_are_refused(config, rank, problem):
    if problem is None:
        check(config, rank)
    else:
        with pytest.raises(ValueError, match=problem):
            shard(build(config), rank, REFERENCE, "cpu")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_everything_once(size):
    for count, unit in ((2880, 32), (96, 32), (29, 1)):
        shares = [Rank(i, size).share(count, unit) for i in range(size)]
        assert [i for share in shares for i in range(count)[share]] == list(range(count))
        sizes = {(share.stop - share.start) // unit for share in shares}
        assert max(sizes) - min(sizes) <= 1


def test_a_part_of_a_packed_stack_is_that_part():
    numbers = torch.randn(3, 8, 96, generator=torch.Generator().manual_seed(0))
    packed = quantize(numbers)
    for dim, share in ((0, slice(1, 3)), (1, slice(2, 6)), (2, slice(32, 96))):
        part = cut(packed, dim, share)
        assert not isinstance(part, torch.Tensor)
        index = (slice(None),) * dim + (share,)
        assert torch.equal(part.dense(), packed.dense()[index])  # type: ignore[union-attr]


def test_a_backend_across_ranks_can_be_pickled():
    backend = pickle.loads(pickle.dumps(across(REFERENCE)))
    assert backend.name == across(REFERENCE).name
    assert backend.recorder() is None
