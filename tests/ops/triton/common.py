"""What the tests of the kernels share."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.ops.triton import TRITON, Triton
from tests.ops.flat import Flat
from tests.ops.inputs import normal, packed

__all__ = [
    "DTYPES",
    "FEW",
    "RESULT_ERROR",
    "Doubled",
    "normal",
    "packed",
    "relative_error",
    "same_kinds",
    "triton",
]

triton = Flat(TRITON)

# What rounding the result to the type costs; sums are in float32.
RESULT_ERROR = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = st.sampled_from(list(RESULT_ERROR))
FEW = settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


class Doubled(Triton):
    """As on two ranks that have the same share."""

    def reduce(self, x: Tensor) -> Tensor:
        return 2 * x


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest magnitude of what is expected."""
    found, expected = found.double(), expected.double()
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().amax() / expected.abs().amax().clamp_min(1e-30))


def same_kinds(found: Tensor, expected: Tensor) -> bool:
    """Whether NaN and infinities are at the same places."""
    return all(
        torch.equal(kind(found), kind(expected))
        for kind in (torch.isnan, torch.isposinf, torch.isneginf)
    )
