"""Calls of every native operation, right ones and wrong ones: each of these differs from a right
one in up to three arguments, or in what those are made of.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ossia.ops import _native

NUMBERS = (0, 1, -1, 3, 32, 1 << 30, -(1 << 31), 1 << 40, 1 << 62, (1 << 63) - 32, -(1 << 63))
FLOATS = (0.0, -1.0, 0.5, 1e38, float("inf"), float("-inf"), float("nan"))
DTYPES = (
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float16,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)


@dataclass
class Made:
    """A value of the native module, and what it is made of."""

    kind: str
    parts: list[Any]


def made(argument: Any) -> Any:
    """The argument with all native values in it. Raises what their constructors raise."""
    if isinstance(argument, Made):
        return getattr(_native, argument.kind)(*map(made, argument.parts))
    return list(map(made, argument)) if isinstance(argument, list) else argument


class Calls:
    """Random calls, the same for each seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self._numbers = torch.Generator().manual_seed(seed)

    def right(self) -> tuple[str, list[Any]]:
        """The name of a method of `Machine`, and arguments that it takes."""
        make = self.draw.choice(self.KINDS)
        return make(self, self.draw.choice((torch.float32, torch.bfloat16)))

    def wrong(self, others: tuple[Callable[[Any, Tensor], Any], ...] = ()) -> tuple[str, list[Any]]:
        """The same with some arguments changed, also by `others`, though perhaps to right ones."""
        name, arguments = self.right()
        for _ in range(self.draw.randint(1, 3)):
            where, place = self.draw.choice(_places(arguments))
            where[place] = self._changed(where[place], others)
        return name, arguments

    def _changed(self, value: Any, others: tuple[Callable[[Any, Tensor], Any], ...]) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return self.draw.choice(NUMBERS)
        if isinstance(value, float):
            return self.draw.choice(FLOATS)
        if not isinstance(value, Tensor):
            return self._floats(self.draw.randint(0, 9), self.draw.randint(1, 9))
        try:
            if value.numel() and not value.data_ptr():
                return value  # torch itself would read what is not there
            return self.draw.choice((*self.CHANGES, *others))(self, value)
        except (RuntimeError, TypeError, NotImplementedError):
            return value  # of a kind, after an earlier change, that cannot be changed so

    # How tensors are changed.

    def _retyped(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.draw.choice(DTYPES))

    def _resized(self, tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor[None]
        dim = self.draw.randrange(tensor.dim())
        size = max(0, tensor.shape[dim] + self.draw.choice((-99, -1, 1, 1, 7)))
        index = torch.arange(size) % max(1, tensor.shape[dim])
        return tensor.index_select(dim, index) if tensor.numel() else tensor

    def _reshaped(self, tensor: Tensor) -> Tensor:
        if self.draw.random() < 0.5 or not tensor.dim():
            return tensor.unsqueeze(self.draw.randint(0, tensor.dim()))
        return tensor.flatten() if self.draw.random() < 0.5 else tensor[0:1].squeeze(0)

    def _strided(self, tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        kind, dim = self.draw.randrange(4), self.draw.randrange(tensor.dim())
        if kind == 0:
            return tensor.transpose(dim, self.draw.randrange(tensor.dim()))
        if kind == 1:
            return tensor.repeat_interleave(2, dim)[(slice(None),) * dim + (slice(None, None, 2),)]
        if kind == 2:
            return tensor.narrow(dim, 0, min(1, tensor.shape[dim])).expand(tensor.shape)
        return tensor[..., None].expand(*tensor.shape, 1 << 40)

    def _revalued(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        values = FLOATS if tensor.is_floating_point() else NUMBERS
        value = self.draw.choice(values)
        if not tensor.is_floating_point():
            limits = torch.iinfo(tensor.dtype)
            value = min(max(value, limits.min), limits.max)
        if self.draw.random() < 0.5 or not tensor.numel():
            return tensor.fill_(value)
        tensor.view(-1)[self.draw.randrange(tensor.numel())] = value
        return tensor

    CHANGES = (_retyped, _resized, _reshaped, _strided, _revalued, _revalued, lambda *_: None)

    # Right calls, of sizes that reach all kernels.

    def _floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self._numbers).to(dtype)

    def _ids(self, *shape: int, below: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(0, below, shape, generator=self._numbers).to(dtype)

    def _matrix(self, rows: int, cols: int, dtype: torch.dtype) -> Made:
        bias = self.draw.choice((None, self._floats(rows, dtype=dtype)))
        if self.draw.random() < 0.4:
            codes = self._ids(rows, cols, below=127, dtype=torch.int8)
            group = self.draw.choice((32, 64, 128, 256))
            return Made("Matrix", [codes, bias, self._floats(rows, -(-cols // group)), group])
        weight = self._floats(rows, cols, dtype=dtype)
        if self.draw.random() < 0.3:
            weight = weight.T.contiguous().T
        return Made("Matrix", [weight, bias, None, 0])

    def _linear(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        tokens, cols = self.draw.choice((1, 3, 20)), self.draw.choice((7, 64, 150))
        x, y = self._floats(tokens, cols, dtype=dtype), self._floats(tokens, 9, dtype=dtype)
        residual = self.draw.choice((None, self._floats(tokens, 9, dtype=dtype)))
        matrix = self._matrix(9, cols, dtype)
        return "linear", [x, matrix, y, residual, self._rounds(matrix)]

    def _linears(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        tokens, count = self.draw.choice((1, 20)), self.draw.randint(1, 3)
        matrix = self._matrix(9, 64, dtype)
        ys = [self._floats(tokens, 9, dtype=dtype) for _ in range(count)]
        matrices = [Made("Matrix", [*matrix.parts]) for _ in range(count)]
        x = self._floats(tokens, 64, dtype=dtype)
        return "linears", [x, matrices, ys, self._rounds(matrix)]

    def _rounds(self, matrix: Made) -> bool:
        """Whether activations are rounded, where they can be."""
        return matrix.parts[3] == 128 and self.draw.random() < 0.7

    def _quantize(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        codes = torch.zeros(5, 70, dtype=torch.int8)
        return "quantize_int8", [self._floats(5, 70, dtype=dtype), codes, torch.zeros(5, 3), 32]

    def _codes(self) -> list[Tensor]:
        blocks = self._ids(5, 2, 16, below=256, dtype=torch.uint8)
        return [blocks, self._ids(5, 2, below=256, dtype=torch.uint8)]

    def _pack(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        sums = torch.zeros(5, 2, dtype=torch.float64)
        return "pack_mxfp4", [self._floats(5, 64, dtype=dtype), *self._codes(), sums]

    def _unpack(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        return "unpack_mxfp4", [*self._codes(), self._floats(5, 64, dtype=dtype)]

    def _grouped(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        packed, turned = self.draw.random() < 0.5, self.draw.random() < 0.5
        counts = torch.tensor(self.draw.choice(([0, 1, 0, 2], [20, 0, 3, 1])))
        tokens, sizes = int(counts.sum()), (96, 64) if turned else (64, 96)
        x, y = (self._floats(tokens, size, dtype=dtype) for size in sizes)
        return "grouped", [x, counts, self._stack(96, 64, dtype, packed=packed), y, turned]

    def _gate(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        pairs, units = self._floats(3, 128, dtype=dtype), self._floats(3, 64, dtype=dtype)
        kind = [self.draw.random() < 0.5, 7.0, 1.7]
        gradient = ("gate_gradient", [pairs, units, torch.empty_like(pairs), *kind])
        return self.draw.choice((("gate_pairs", [pairs, units, *kind]), gradient))

    def _gradients(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        five = [self._floats(3, 70, dtype=dtype) for _ in range(5)]
        kind = [self.draw.random() < 0.5, 7.0, 1.7]
        return self.draw.choice((("gelu_gradient", five[:3]), ("gated_gradient", [*five, *kind])))

    def _norm(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        x, slope = self._floats(3, 40, dtype=dtype), self._floats(3, 40, dtype=dtype)
        weight, bias = self._floats(40), self.draw.choice((None, self._floats(40)))
        d_bias = None if bias is None else torch.empty_like(bias)
        gradient = [x, weight, slope, torch.empty_like(x), torch.empty_like(weight), d_bias, 1e-5]
        return self.draw.choice(
            (("norm", [x, weight, bias, slope, 1e-5, False]), ("norm_gradient", gradient))
        )

    def _softmax_loss(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        logits, targets = self._floats(3, 70, dtype=dtype), self._ids(3, below=70)
        slopes = self.draw.random() < 0.5
        return "softmax_loss", [logits, targets, torch.zeros(3, 2), 0.5, 0.1, slopes]

    def _weight_gradient(self, _: torch.dtype) -> tuple[str, list[Any]]:
        counts = torch.tensor(self.draw.choice(([0, 1, 2], [40, 0, 3])))
        sizes = (50, 70)
        slope, x = (self._floats(int(counts.sum()), n, dtype=torch.bfloat16) for n in sizes)
        bias = self.draw.choice((None, self._floats(3, 50)))
        add = self.draw.random() < 0.5
        return "weight_gradient", [slope, x, counts, self._floats(3, 50, 70), bias, add]

    def _embed(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        residual = self.draw.choice((None, self._floats(4, 8, dtype=dtype)))
        table, y = self._floats(10, 8, dtype=dtype), self._floats(4, 8, dtype=dtype)
        return "embed", [self._ids(4, below=10), table, y, residual]

    def _rms_norm(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        x, weight = self._floats(3, 40, dtype=dtype), self._floats(40, dtype=dtype)
        return "rms_norm", [x, weight, torch.empty_like(x), 1e-5, self.draw.random() < 0.5]

    def _layer_norm(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        x, weight, bias = (self._floats(*s, dtype=dtype) for s in ((3, 40), (40,), (40,)))
        return "layer_norm", [x, weight, bias, torch.empty_like(x), 1e-5]

    def _rope_table(self, _: torch.dtype) -> tuple[str, list[Any]]:
        outs = torch.zeros(5, 4), torch.zeros(5, 4)
        return "rope_table", [self._ids(5, below=99), self._floats(4), 1.0, *outs]

    def _rotate(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        x = self._floats(5, 2, 8, dtype=dtype)
        return "rotate", [x, self._floats(5, 4), self._floats(5, 4), torch.empty_like(x)]

    def _gelu(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        return "gelu", [self._floats(3, 70, dtype=dtype), self._floats(3, 70, dtype=dtype)]

    def _swiglu(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        three = [self._floats(3, 70, dtype=dtype) for _ in range(3)]
        return self.draw.choice((("swiglu", three), ("clamped_swiglu", [*three, 7.0, 1.7])))

    def _route(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        outs = torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2)
        return "route", [self._floats(4, 6, dtype=dtype), *outs, True, False]

    def _stack(self, rows: int, cols: int, dtype: torch.dtype, *, packed: bool) -> Made:
        bias = self._floats(4, rows, dtype=dtype)
        if packed:
            blocks = self._ids(4, rows, cols // 32, 16, below=256, dtype=torch.uint8)
            scales = self._ids(4, rows, cols // 32, below=256, dtype=torch.uint8)
            return Made("Stack", [blocks, bias, scales])
        return Made("Stack", [self._floats(4, rows, cols, dtype=dtype), bias, None])

    def _moe(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        tokens, packed = self.draw.choice((1, 3, 20)), self.draw.random() < 0.5
        stacks = [self._stack(*shape, dtype, packed=packed) for shape in ((128, 96), (96, 64))]
        experts = Made("Experts", [*stacks, self.draw.random() < 0.5, 7.0, 1.7])
        x, y, residual = (self._floats(tokens, 96, dtype=dtype) for _ in range(3))
        ids, weights = self._ids(tokens, 2, below=4), self._floats(tokens, 2)
        rounds = packed and self.draw.random() < 0.5
        return "moe", [x, ids, weights, experts, y, self.draw.choice((None, residual)), rounds]

    def _attention(self, dtype: torch.dtype) -> tuple[str, list[Any]]:
        stored = self.draw.choice((dtype, torch.int8))
        pages: list[Any] = [self._floats(7, 4, 2, 8).to(stored) for _ in range(2)]
        pages += [self._floats(7, 4, 2) if stored is torch.int8 else None for _ in range(2)]
        table = torch.tensor([[0, 1, 2], [3, 4, -1]], dtype=torch.int32)
        lengths, counts = torch.tensor([9, 6]), torch.tensor(self.draw.choice(([2, 1], [1, 2])))
        q, y = (self._floats(3, 4, 8, dtype=dtype) for _ in range(2))
        k, v = (self._floats(3, 2, 8, dtype=dtype) for _ in range(2))
        sinks = self.draw.choice((None, self._floats(4)))
        angles = self.draw.choice(([None, None], [self._floats(3, 4), self._floats(3, 4)]))
        window = self.draw.choice((0, 3))
        tables = Made("Tables", [table, lengths, counts])
        kept = [q, k, v, y, Made("Pages", pages), tables, window, sinks, *angles]
        return "paged_attention", kept

    def _sample(self, _: torch.dtype) -> tuple[str, list[Any]]:
        rows, vocab = 3, self.draw.choice((1, 40, 9000))
        scale = torch.tensor([[0.0], [1.4], [3.0]])
        top_k = torch.tensor([[vocab], [1], [min(vocab, 7)]])
        top_p = torch.tensor([[1.0], [0.5], [0.9]], dtype=torch.float64)
        floor = torch.tensor([[-float("inf")], [-2.0], [0.0]])
        uniforms = torch.rand(rows, 1, generator=self._numbers).double()
        bits = self._ids(rows, -(-vocab // 32), below=1 << 31, dtype=torch.int32)
        edits: list[Any] = []
        if self.draw.random() < 0.7:
            ones = [torch.ones(2, 1) for _ in range(3)]
            edits = [torch.tensor([0, 2]), torch.tensor([[1], [2]]), self._ids(2, 2, below=vocab)]
            edits += [self._floats(2, 2), self._ids(2, 2, below=3), *ones]
        parts = [scale, top_k, top_p, floor, uniforms, self.draw.choice((None, bits))]
        table = Made("SamplingTable", [*parts, Made("Edits", edits)])
        ids = torch.zeros(rows, dtype=torch.int64)
        return "sample", [self._floats(rows, vocab), table, ids]

    def _sum(self, _: torch.dtype) -> tuple[str, list[Any]]:
        return "sum", [self._ids(1000, below=1 << 60)]

    KINDS = (
        _linear,
        _linears,
        _quantize,
        _pack,
        _unpack,
        _grouped,
        _gate,
        _gradients,
        _norm,
        _softmax_loss,
        _weight_gradient,
        _embed,
        _rms_norm,
        _layer_norm,
        _rope_table,
        _rotate,
        _gelu,
        _swiglu,
        _route,
        _moe,
        _attention,
        _sample,
        _sum,
    )


def _places(arguments: list[Any]) -> list[tuple[list[Any], int]]:
    """Every place of an argument, in lists and in native values too."""
    places = []
    for i, argument in enumerate(arguments):
        inner = argument.parts if isinstance(argument, Made) else argument
        if isinstance(inner, list):
            places += _places(inner)
        else:
            places.append((arguments, i))
    return places
