"""The native kernels, in every instruction set this processor has, are the reference."""

import pytest

ISAS = ("portable", "avx2", "avx512")


@pytest.fixture(scope="module", params=ISAS)
def isa(request) -> str:
    from tests.ops.cpu.common import cpu  # here, where a skip is heard

    try:
        cpu.Machine(1, request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.fixture(scope="module")
def form(isa):
    """That instruction set's machines, `common.Forms`."""
    from tests.ops.cpu.common import Forms

    return Forms(isa)
