"""What the tests of the native kernels share: machines, inputs, how far results may lie apart."""

import os
import platform
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from tests.ops.cpu.driver import emulated_driver
from tests.ops.cpu.remote import Remote
from tests.ops.flat import Flat
from tests.ops.inputs import normal, packed

if shutil.which("c++") is None:
    cpu = pytest.importorskip("ossia.ops.cpu", reason="no compiler, so no native kernels")
else:  # with a compiler they must be there: a build that fails falls back in silence
    from ossia.ops import cpu

from ossia.ops import _native

__all__ = [
    "DTYPES",
    "FEW",
    "RESULT_ERROR",
    "Forms",
    "cpu",
    "missing",
    "moe_error",
    "native",
    "normal",
    "packed",
    "relative_error",
]

native = Flat(cpu.CPU)

# What rounding the result to the type costs; sums are in float32 in both.
RESULT_ERROR = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
FEW = settings(max_examples=25)


class Forms:
    """Machines of one instruction set in the backend's place: of one thread and of three, here and
    where the memory behind or before each tensor cannot be touched.
    """

    def __init__(self, isa: str) -> None:
        self.has_tiles = "amx" in isa
        self.flushes = self.has_tiles or "bf16" in isa  # takes what is below 2**-126 for 0
        self.machines = _machines(isa)

    def __call__(self, operation, *arguments, **options) -> torch.Tensor:
        """The operation's result, which neither threads nor where its tensors lie change."""
        results = []
        for machine in self.machines:
            with cpu.using(machine), torch.no_grad():
                results.append(operation(*arguments, **options))
        for result in results[1:]:
            assert torch.equal(result.nan_to_num(), results[0].nan_to_num())
        return results[0]


def moe_error(form: Forms, dtype: torch.dtype) -> float:
    """How far experts may lie from float32's. As integers the activations err by 3e-5 to 3e-4, far
    below what bfloat16 costs; of float32 what that leaves counts too. A matrix unit takes what lies
    between the two products in bfloat16, half of 2**-8 for each unit, more where units cancel.
    """
    if dtype is torch.float32:
        return 2e-6
    return 2**-7 if form.has_tiles else 2**-11


def missing(isa: str) -> str:
    """Why there is no machine of that instruction set."""
    if isa == "amx-emulated":
        return "no emulated AMX: the processor has no AVX-512, or `make test` did not build this"
    return f"this processor has no {isa}"


@lru_cache
def _machines(isa: str) -> list[_native.Machine]:
    """For the whole session: two are processes. Skips what neither the processor nor an emulator
    runs. OSSIA_DRIVER names a program to serve all calls, such as one built with a sanitizer.
    """
    driver = os.environ.get("OSSIA_DRIVER")
    here = []
    try:
        here = [cpu.Machine(threads, isa) for threads in (1, 3)]
    except ValueError:
        if isa != "neon" or platform.machine() == "aarch64":
            pytest.skip(missing(isa))
        command = emulated_driver()
    else:
        worker = str(Path(__file__).parent / "worker.py")
        command = (driver,) if driver else (sys.executable, worker, _native.__file__)
    fenced = [
        Remote(*command, "1", isa, "end").machine,
        Remote(*command, "3", isa, "begin").machine,
    ]
    return fenced if driver else [*here, *fenced]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
