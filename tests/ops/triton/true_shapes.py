"""Operations at the shapes of true models, as functions of a backend and of what makes inputs.

With meta tensors they say which kernels to compile (`ahead`); on a card they are run and compared
with the reference (`test_true_shapes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, RoPE, Router, SwiGLU, YaRN
from ossia.ops import AttentionSpec, Backend, ExpertWeights, Norm, RopeTable, RouterWeights
from ossia.ops.int8 import GROUP, Int8
from ossia.ops.paged import FP8, LayerKV, StepTables
from ossia.ops.sampling import SamplingTable
from ossia.ops.triton.paired import PairedMXFP4
from ossia.ops.weight import Weight


@dataclass(frozen=True)
class Inputs:
    """Makes the tensors of one case, the same ones for every backend."""

    device: torch.device

    def normal(
        self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0
    ) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        return (torch.randn(shape, generator=generator, device=self.device) * scale).to(dtype)

    def integers(
        self, high: int, *shape: int, dtype: torch.dtype = torch.int64, low: int = 0
    ) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        high = min(high, torch.iinfo(dtype).max + 1)
        options = {"generator": generator, "device": self.device, "dtype": dtype}
        return torch.randint(low, high, shape, **options)


Case = Callable[[Backend, Inputs], Tensor]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@case
def rms_norm(ops: Backend, inputs: Inputs) -> Tensor:
    x, weight = inputs.normal(8, 2880), inputs.normal(2880)
    return ops.rms_norm(x, weight, 1e-5, round_before_weight=False)


@case
def rms_norms(ops: Backend, inputs: Inputs) -> Tensor:
    """Qwen3's, of 16 query and 8 key heads."""
    norms = [Norm(inputs.normal(128), None, 1e-6, True) for _ in range(2)]
    return torch.cat(ops.norms([inputs.normal(8, 16, 128), inputs.normal(8, 8, 128)], norms), 1)


@case
def layer_norm(ops: Backend, inputs: Inputs) -> Tensor:
    x, weight, bias = inputs.normal(8, 768), inputs.normal(768), inputs.normal(768)
    return ops.layer_norm(x, weight, bias, 1e-5)


def _packed(inputs: Inputs, *shape: int) -> PairedMXFP4:
    """A stack in the layout of the kernels; the reference reads it too."""
    *rows, cols = shape
    pairs = inputs.integers(256, *rows, cols // 64, 32, dtype=torch.uint8)
    scales = inputs.integers(122, *rows, cols // 32, dtype=torch.uint8, low=116)
    return PairedMXFP4(pairs, scales, cols)


def _experts(inputs: Inputs, dtype: torch.dtype = torch.bfloat16, count: int = 32) -> ExpertWeights:
    """gpt-oss-20b's."""
    return ExpertWeights(
        _packed(inputs, count, 5760, 2880), inputs.normal(count, 5760, dtype=dtype),
        _packed(inputs, count, 2880, 2880), inputs.normal(count, 2880, dtype=dtype),
        ClampedSwiGLU(),
    )  # fmt: skip


def _moe(tokens: int, dtype: torch.dtype) -> Case:
    def run(ops: Backend, inputs: Inputs) -> Tensor:
        logits = inputs.normal(tokens, 32, dtype=dtype)
        routing = ops.route(logits, 4, Router.TOP_K_THEN_SOFTMAX)
        x = inputs.normal(tokens, 2880, dtype=dtype)
        return ops.moe(x, routing, _experts(inputs, dtype), residual=x)

    return run


def _qwen3_moe(tokens: int, dtype: torch.dtype) -> Case:
    def run(ops: Backend, inputs: Inputs) -> Tensor:
        logits = inputs.normal(tokens, 128, dtype=dtype)
        routing = ops.route(logits, 8, Router.SOFTMAX_THEN_TOP_K_RENORMALIZED)
        x = inputs.normal(tokens, 2048, dtype=dtype)
        gate_up = inputs.normal(128, 1536, 2048, dtype=dtype, scale=2048**-0.5)
        down = inputs.normal(128, 2048, 768, dtype=dtype, scale=768**-0.5)
        return ops.moe(x, routing, ExpertWeights(gate_up, None, down, None, SwiGLU()))

    return run


# Each of the block shapes in bfloat16, and what other types change.
_FORMS = [
    (_moe, "moe", (1, 16, 256, 512, 2048), torch.bfloat16),
    (_moe, "moe", (1, 16), torch.float16),
    (_moe, "moe", (16, 2048), torch.float32),
    (_qwen3_moe, "qwen3_moe", (1, 2048), torch.bfloat16),
    (_qwen3_moe, "qwen3_moe", (2048,), torch.float32),
]
for _make, _name, _sizes, _dtype in _FORMS:
    for _tokens in _sizes:
        _title = f"{_name}_{_tokens}_{str(_dtype).removeprefix('torch.')}"
        CASES[_title] = _make(_tokens, _dtype)


def _normed_moe(tokens: int) -> Case:
    def run(ops: Backend, inputs: Inputs) -> Tensor:
        x = inputs.normal(tokens, 2880)
        norm = Norm(inputs.normal(2880), None, 1e-5)
        # All of a few experts, whose choice no rounding of logits changes.
        weight = inputs.normal(4, 2880, scale=2880**-0.5)
        router = RouterWeights(weight, inputs.normal(4), 4, Router.TOP_K_THEN_SOFTMAX)
        return ops.normed_moe(x, norm, router, _experts(inputs, count=4), residual=x)

    return run


CASES |= {f"normed moe of {tokens}": _normed_moe(tokens) for tokens in (1, 8)}


@dataclass(frozen=True)
class _Attention:
    """Sequences of one length and number of queries over pages, with gpt-oss's heads or Qwen3's."""

    sequences: int
    length: int
    count: int
    window: int | None = None
    int8: bool = False
    fp8: bool = False
    apart: bool = False
    kv_heads: int = 8
    group: int = 8
    size: int = 64

    def __call__(self, ops: Backend, inputs: Inputs) -> Tensor:
        heads, tokens = self.kv_heads * self.group, self.sequences * self.count
        q, k, v = (inputs.normal(tokens, n, self.size) for n in (heads, *(self.kv_heads,) * 2))
        angles = inputs.normal(tokens, self.size // 2, dtype=torch.float32)
        rope = RopeTable(angles.cos(), angles.sin())
        spec = AttentionSpec(self.window, inputs.normal(heads) if self.window else None)
        return ops.attention(q, k, v, spec, self._pages(inputs), rope)

    def _pages(self, inputs: Inputs) -> LayerKV:
        page, columns = 16, self.length // 16
        shape = (self.sequences * columns, page, self.kv_heads)
        table = torch.arange(shape[0], dtype=torch.int32, device=inputs.device)
        lengths, counts = (
            torch.full((self.sequences,), number, device=inputs.device)
            for number in (self.length, self.count)
        )
        spans = [(self.length, self.count)] * self.sequences
        table = table.view(self.sequences, columns)
        tables = StepTables(self.window, page, table, lengths, counts, spans, apart=self.apart)
        if self.fp8:
            bits = [inputs.integers(120, *shape, self.size, dtype=torch.uint8) for _ in range(2)]
            return LayerKV(bits[0].view(FP8), bits[1].view(FP8), tables)
        if not self.int8:
            keys, values = (inputs.normal(*shape, self.size) for _ in range(2))
            return LayerKV(keys, values, tables)
        codes = [inputs.integers(255, *shape, self.size, dtype=torch.int8) for _ in range(2)]
        scales = [inputs.normal(*shape, dtype=torch.float32, scale=0.02).abs() for _ in range(2)]
        return LayerKV(codes[0], codes[1], tables, *scales)


CASES |= {
    "attention decode": _Attention(1, 8192, 1),
    "attention decode, window": _Attention(64, 1024, 1, window=128),
    "attention decode, int8": _Attention(64, 1024, 1, int8=True),
    "attention decode, apart": _Attention(1, 8192, 1, apart=True),
    "attention decode, apart, window": _Attention(64, 1024, 1, window=128, apart=True),
    "attention decode, apart, int8": _Attention(64, 1024, 1, int8=True, apart=True),
    "attention decode, apart, fp8": _Attention(64, 1024, 1, fp8=True, apart=True),
    "attention prefill": _Attention(2, 1024, 512),
    "attention prefill, window": _Attention(2, 1024, 512, window=128),
    "attention prefill, int8": _Attention(2, 1024, 512, int8=True),
    "attention prefill, fp8": _Attention(2, 1024, 512, fp8=True),
    "attention prefill, Qwen3": _Attention(2, 1024, 512, group=2, size=128),
}


@case
def sample(ops: Backend, inputs: Inputs) -> Tensor:
    """Four rows that are greedy and four with all that narrows the choice."""
    rows, vocab = 8, 201_088
    logits = inputs.normal(rows, vocab, dtype=torch.float32, scale=3.0)
    ones = inputs.normal(rows, 1, dtype=torch.float32, scale=0.0) + 1
    sampled = torch.arange(4, rows, device=inputs.device)
    return ops.sample(
        logits,
        SamplingTable(
            scale=ones, top_k=(50 * ones).long(), top_p=0.9 * ones.double(),
            log2_min_p=-8 * ones, uniforms=0.7 * ones.double(),
            sampled=sampled, ranked=sampled - 4, largest_k=50,
            bits=inputs.integers((1 << 31) - 1, rows, vocab // 32, dtype=torch.int32),
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class _Linear:
    """Matrices (rows, cols) of one x, with biases and a residual, or logits in float32."""

    tokens: int
    cols: int
    rows: tuple[int, ...]
    int8: bool = False
    logits: bool = False
    normed: bool = False

    def __call__(self, ops: Backend, inputs: Inputs) -> Tensor:
        x = inputs.normal(self.tokens, self.cols)
        weights = [self._weight(inputs, rows) for rows in self.rows]
        if self.logits:
            return ops.linear(x, weights[0], dtype=torch.float32)
        biases = [inputs.normal(rows) for rows in self.rows]
        if self.normed:
            norm = Norm(inputs.normal(self.cols), None, 1e-5)
            return torch.cat(ops.normed_linears(x, norm, weights, biases), dim=1)
        if len(weights) > 1:
            return torch.cat(ops.linears(x, weights, biases), dim=1)
        residual = inputs.normal(self.tokens, self.rows[0])
        return ops.linear(x, weights[0], biases[0], residual=residual)

    def _weight(self, inputs: Inputs, rows: int) -> Weight:
        if not self.int8:
            return inputs.normal(rows, self.cols, scale=self.cols**-0.5)
        codes = inputs.integers(127, rows, self.cols, dtype=torch.int8, low=-127)
        groups = -(-self.cols // GROUP)
        return Int8(codes, inputs.normal(rows, groups, dtype=torch.float32, scale=1e-3).abs())


CASES |= {
    "q, k, v of 1": _Linear(1, 2880, (4096, 512, 512)),
    "q, k, v of 4": _Linear(4, 2880, (4096, 512, 512)),
    "q, k, v of 16": _Linear(16, 2880, (4096, 512, 512)),
    "q, k, v of 1, int8": _Linear(1, 2880, (4096, 512, 512), int8=True),
    "norm, q, k, v of 1": _Linear(1, 2880, (4096, 512, 512), normed=True),
    "norm, q, k, v of 2": _Linear(2, 2880, (4096, 512, 512), normed=True),
    "norm, q, k, v of 1, int8": _Linear(1, 2880, (4096, 512, 512), int8=True, normed=True),
    "o of 1": _Linear(1, 4096, (2880,)),
    "o of 16": _Linear(16, 4096, (2880,)),
    "o of 16, int8": _Linear(16, 4096, (2880,), int8=True),
    "o of 500, int8": _Linear(500, 4096, (2880,), int8=True),
    "logits of 1": _Linear(1, 2880, (201088,), logits=True),
    "logits of 64": _Linear(64, 2880, (201088,), logits=True),
    "logits of 256": _Linear(256, 2880, (201088,), logits=True),
}


@case
def embed(ops: Backend, inputs: Inputs) -> Tensor:
    ids = inputs.integers(50257, 300)
    return ops.embed(ids, inputs.normal(50257, 768), residual=inputs.normal(300, 768))


@case
def rope_table(ops: Backend, inputs: Inputs) -> Tensor:
    rope = RoPE(150_000.0, YaRN(32.0, 4096, truncate=False))
    return torch.cat(ops.rope_table(inputs.integers(131072, 64), rope, 64))


@case
def gated(ops: Backend, inputs: Inputs) -> Tensor:
    return ops.gated(inputs.normal(8, 3072), inputs.normal(8, 3072), SwiGLU())
