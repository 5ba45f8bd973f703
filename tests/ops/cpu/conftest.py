"""The native kernels, in every instruction set, are the reference."""

import pytest

ISAS = ("portable", "avx2", "avx512", "avx512+bf16", "avx512+amx", "amx-emulated", "neon")


@pytest.fixture(scope="module", params=ISAS)
def isa(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def form(isa):
    """That instruction set's machines, `common.Forms`."""
    from tests.ops.cpu.common import Forms  # here, where a skip is heard

    return Forms(isa)
