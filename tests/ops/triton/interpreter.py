"""Makes Triton's interpreter compute with bfloat16 as a card does.

numpy has no bfloat16, so the interpreter keeps its bits as integers. As of Triton 3.7 it truncates
where a card rounds to nearest even, and multiplies the bits in `tl.dot`. It also patches the whole
language again each time that a kernel calls a function, `tl.sum` among them, which takes more time
than most of these functions do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _narrow(numbers: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    rounded = bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)
    rounded = np.where(np.isnan(numbers), np.uint32(0x7FC00000), rounded)
    return (rounded >> 16).astype(np.uint16)


def correct() -> None:
    """Change the interpreter; once per process."""
    builder: Any = interpreter.InterpreterBuilder
    cast, dot = builder.cast_impl, builder.create_dot

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.bfloat16 != target:
            src = interpreter.TensorHandle(_widen(src.data), tl.float32)
            return src if target == tl.float32 else cast(self, src, dst_type)
        if target == tl.bfloat16 != source:
            return interpreter.TensorHandle(_narrow(src.data), tl.bfloat16)
        return cast(self, src, dst_type)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (
            interpreter.TensorHandle(_widen(x.data), tl.float32) if x.dtype == tl.bfloat16 else x
            for x in (a, b)
        )
        return dot(self, a, b, *rest)

    builder.cast_impl, builder.create_dot = cast_impl, create_dot
    _patch_once()


def _patch_once() -> None:
    """Let functions that a kernel calls rely on what was patched since its launch."""
    patch: Any = interpreter._patch_lang
    launch = interpreter.GridExecutor.__call__
    patched: set[int] = set()

    def patch_new(function: Any) -> Any:
        module = id(function.__globals__)
        if module in patched:
            return None
        patched.add(module)
        return patch(function)

    def call(self: Any, *arguments: Any, **options: Any) -> None:
        patched.clear()
        launch(self, *arguments, **options)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_new, call
