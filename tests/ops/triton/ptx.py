"""Runs the inline assembly of kernels in Python: the few PTX instructions that they use, on words.

Semantics as in NVIDIA's "PTX ISA", chapter 9.7. An instruction that is not here is an error.
"""

from __future__ import annotations

import re
import struct

import numpy as np

MASK = 0xFFFFFFFF


def run(assembly: str, outputs: int, inputs: list[int]) -> list[int]:
    """The words in $0 .. $outputs-1, with `inputs` in the operands after them."""
    values = {f"${outputs + i}": word & MASK for i, word in enumerate(inputs)}
    for line in assembly.strip().strip("{}").split(";"):
        if not (line := line.strip()) or line.startswith(".reg"):
            continue
        operation, rest = line.split(None, 1)
        if operation == "mov.b32" and "{" in rest:  # {l, h}, word: its halves
            low, high, word = re.findall(r"[\w$]+", rest)
            values[low], values[high] = values[word] & 0xFFFF, values[word] >> 16
            continue
        target, *names = (name.strip() for name in rest.split(","))
        values[target] = _step(operation, [_operand(name, values) for name in names])
    return [values[f"${i}"] for i in range(outputs)]


def _operand(name: str, values: dict[str, int]) -> int:
    return int(name, 0) if name[0].isdigit() else values[name]


def _step(operation: str, words: list[int]) -> int:
    match operation:
        case "mov.b32":
            return words[0]
        case "and.b32":
            return words[0] & words[1]
        case "or.b32":
            return words[0] | words[1]
        case "shl.b32":
            return words[0] << words[1] & MASK
        case "shr.b32":  # without a sign
            return words[0] >> words[1]
        case "prmt.b32":
            source = (words[0] | words[1] << 32).to_bytes(8, "little")
            chosen = (source[words[2] >> 4 * i & 7] for i in range(4))
            return int.from_bytes(bytes(chosen), "little")
        case "mul.rn.f16x2":
            return _halves(words[0], words[1], 0)
        case "fma.rn.f16x2":
            return _halves(*words)
        case "fma.rn.bf16x2":
            return _brain_halves(*words)
        case "cvt.f32.f16":
            return _bits(float(_half(words[0])))
        case "add.f32":
            return _bits(_float(words[0]) + _float(words[1]))
    raise NotImplementedError(operation)


def _halves(a: int, b: int, c: int) -> int:
    """a * b + c for both halves, rounded once: float64 holds the product and nearly all sums."""
    result = 0
    for shift in (0, 16):
        x, y, z = (float(_half(word >> shift & 0xFFFF)) for word in (a, b, c))
        result |= int(np.float16(x * y + z).view(np.uint16)) << shift
    return result


def _brain_halves(a: int, b: int, c: int) -> int:
    """As `_halves`, of bfloat16."""
    result = 0
    for shift in (0, 16):
        x, y, z = (_float((word >> shift & 0xFFFF) << 16) for word in (a, b, c))
        bits = _bits(x * y + z)
        assert bits & 0xFFFF == 0, "only exact results are rounded right"
        result |= bits >> 16 << shift
    return result


def _half(bits: int) -> np.float16:
    return np.uint16(bits).view(np.float16)


def _float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def _bits(number: float) -> int:
    return int(np.float32(number).view(np.uint32))
