"""The emulated matrix unit does what Intel's manual says, and a wrong unit is found out.

native/tests/tiles.cpp is compiled here, where there is a compiler for x86-64.
"""

import platform
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch

NATIVE = Path(__file__).parents[3] / "native"
ROW, ROWS, COLUMNS, DEPTH = 64, 3, 6, 14


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> str:
    if platform.machine() != "x86_64" or shutil.which("c++") is None:
        pytest.skip("no compiler for x86-64, so no emulated matrix unit")
    built = str(tmp_path_factory.mktemp("tiles") / "tiles")
    sources = [NATIVE / "tests" / "tiles.cpp", NATIVE / "src" / "amx" / "amx.cpp"]
    options = ["-std=c++17", "-O1", "-mavx2", "-mfma", "-I", NATIVE / "src", "-I", NATIVE / "tests"]
    subprocess.run(["c++", *options, "-o", built, *sources], check=True)
    return built


LEAST = Fraction(2) ** -126


def nearest(value: Fraction) -> Fraction:
    """In float32, ties to even, of any size; what is below the least normal number is 0."""
    if value == 0:
        return value
    exponent = 0
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (exponent - 23)
    value = round(value / step) * step
    return value if abs(value) >= LEAST else Fraction(0)


def exact(value: float) -> Fraction:
    number = Fraction(value)
    return number if abs(number) >= LEAST else Fraction(0)


def multiplied(total: list, left: list, right: list) -> list:
    """By the manual's words: even and odd elements apart, a pair of rows after another."""
    result = []
    for row, sums in enumerate(total):
        for column, before in enumerate(sums):
            parts = [Fraction(0), Fraction(0)]
            for k in range(DEPTH):
                for odd in range(2):
                    a, b = left[row][2 * k + odd], right[k][2 * column + odd]
                    parts[odd] = nearest(parts[odd] + exact(a) * exact(b))
            result.append(float(nearest(exact(before) + nearest(parts[0] + parts[1]))))
    return result


def added(program: str, kind: str, form: str, *tiles: torch.Tensor) -> list:
    """What the unit adds to the first tile, numbers of `form` (struct), by rows."""
    data = b""
    for tile in tiles:
        lines = [bytes(row.view(torch.uint8).tolist()).ljust(ROW, b"\xff") for row in tile]
        data += b"".join(lines).ljust(16 * ROW, b"\xff")
    run = subprocess.run([program, "product", kind], input=data, capture_output=True, check=True)
    found = []
    for row in range(16):
        line = run.stdout[row * ROW :][:ROW]
        used = 4 * COLUMNS if row < ROWS else 0
        found += struct.unpack(f"<{used // 4}{form}", line[:used])
        assert line[used:] == b"\x55" * (ROW - used)  # no byte beyond what is configured
    return found


@pytest.mark.parametrize("size", [1.0, 2.0**-60, 2.0**-63, 2.0**-70])
def test_a_product_is_the_manuals_to_the_bit(program, size):
    """Also of numbers whose products, or which themselves, are below the least normal one."""
    generator = torch.Generator().manual_seed(1)

    def numbers(rows, columns, size):
        spread = 2.0 ** torch.randint(-8, 9, (rows, columns), generator=generator)
        return torch.randn(rows, columns, generator=generator) * spread * size

    total = numbers(ROWS, COLUMNS, size * size)
    left = numbers(ROWS, 2 * DEPTH, size).bfloat16()
    right = numbers(DEPTH, 2 * COLUMNS, size).bfloat16()
    left[2, 3] = 2.0**-130
    found = added(program, "bf16", "f", total, left, right)
    assert found == multiplied(total.tolist(), left.tolist(), right.tolist())


def test_a_product_of_bytes_is_exact_and_wraps_around(program):
    generator = torch.Generator().manual_seed(1)

    def numbers(rows, columns, bits):
        size = (rows, columns)
        return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), size, generator=generator)

    total, left, right = (
        numbers(ROWS, COLUMNS, 32),
        numbers(ROWS, 4 * DEPTH, 8),
        numbers(DEPTH, 4 * COLUMNS, 8),
    )
    left[1], right[:, :4] = -128, -128
    total[1, 0] = 2**31 - 1
    columns = right.view(DEPTH, COLUMNS, 4).transpose(1, 2).reshape(4 * DEPTH, COLUMNS)
    expected = total + left @ columns
    assert int(expected[1, 0]) >= 2**31
    expected = (expected + 2**31) % 2**32 - 2**31
    tiles = total.to(torch.int32), left.to(torch.int8), right.to(torch.int8)
    assert added(program, "bytes", "i", *tiles) == expected.flatten().tolist()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("palette", "LDTILECFG"),
        ("reserved", "LDTILECFG"),
        ("rows", "LDTILECFG"),
        ("bytes", "LDTILECFG"),
        ("no rows", "LDTILECFG"),
        ("ninth", "LDTILECFG"),
        ("no palette", "before LDTILECFG"),
        ("unconfigured", "before LDTILECFG"),
        ("released", "before LDTILECFG"),
        ("uneven", "not configured"),
        ("none", "not configured"),
        ("first row", "first row"),
        ("depth", "do not fit"),
        ("twice", "one tile twice"),
        ("nothing", ""),
    ],
)
@pytest.mark.parametrize("kind", ["bf16", "bytes"])
def test_what_a_processor_refuses_ends_the_program(program, kind, case, said):
    command = [program, "refuse", kind, case]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode == 0) == (not said)
    assert said in run.stderr


def test_a_unit_that_is_wrong_once_is_found_out(program):
    run = subprocess.run([program, "check"], capture_output=True, text=True, check=True)
    assert run.stdout == "1010\n"  # of bfloat16, of bytes
