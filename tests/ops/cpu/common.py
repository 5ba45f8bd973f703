"""What the tests of the native kernels share: machines, inputs, how far results may lie apart."""

import shutil

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from ossia.ops.mxfp4 import MXFP4

if shutil.which("c++") is None:
    cpu = pytest.importorskip("ossia.ops.cpu", reason="no compiler, so no native kernels")
else:  # with a compiler they must be there: a build that fails falls back in silence
    from ossia.ops import cpu

__all__ = ["DTYPES", "FEW", "RESULT_ERROR", "Forms", "cpu", "normal", "packed", "relative_error"]

# What rounding the result to the type costs; sums are in float32 in both.
RESULT_ERROR = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
FEW = settings(max_examples=25, deadline=None)


class Forms:
    """Machines of one thread and of three, in one instruction set, in the backend's place."""

    def __init__(self, isa: str) -> None:
        self.machines = [cpu.Machine(threads, isa) for threads in (1, 3)]

    def __call__(self, operation, *arguments, **options) -> torch.Tensor:
        """The operation's result, which no number of threads changes."""
        results = []
        for machine in self.machines:
            with cpu.using(machine), torch.no_grad():
                results.append(operation(*arguments, **options))
        assert torch.equal(results[0].nan_to_num(), results[1].nan_to_num())
        return results[0]


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(*shape: int, seed: int = 0) -> MXFP4:
    *rows, cols = shape
    generator = torch.Generator().manual_seed(seed)
    return MXFP4(
        torch.randint(0, 256, (*rows, cols // 32, 16), generator=generator, dtype=torch.uint8),
        torch.randint(115, 125, (*rows, cols // 32), generator=generator, dtype=torch.uint8),
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
