"""`--activations int8`: prompts' products are those of vectors that `ops.int8` has rounded."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia import load_model
from ossia.checkpoint import packaged_model
from ossia.engine import Engine, Request, SamplingParams
from ossia.ops import REFERENCE, Routing
from ossia.ops.int8 import Int8, quantize
from ossia.ops.mxfp4 import MXFP4, unpack
from ossia.ops.paged import LayerKind, PagedKV, PagePool
from ossia.options import EngineOptions
from tests.ops.cpu.common import (
    DTYPES,
    FEW,
    Forms,
    cpu,
    missing,
    normal,
    packed,
    relative_error,
)
from tests.ops.flat import Flat

prompts = pytest.importorskip("ossia.ops.cpu.prompts")
ROUNDED = prompts.ROUNDED_PROMPTS
TOKENS = st.integers(17, 50) | st.sampled_from([257, 300])


def reading(operation, *arguments, where=None, **options):
    """The operation, within a pass over whole rows, or over a step's pages."""
    with ROUNDED.reading(where):
        return operation(*arguments, **options)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What int8 holds of vectors (tokens, cols)."""
    return quantize(x.float()).dense().double()


def byte_matrix(weight: MXFP4) -> torch.Tensor:
    """What bytes hold of MXFP4 matrices (..., rows, cols): of 128 columns, multiples of a sixteenth
    of the largest power of two of a block that is not all zeros.
    """
    values = unpack(weight, torch.float32).double()
    *lead, cols = values.shape
    blocks = torch.nn.functional.pad(values, (0, -cols % 128)).view(-1, 4, 32)
    codes = torch.nn.functional.pad(weight.scales.int(), (0, -cols % 128 // 32)).view(-1, 4)
    largest = torch.where(blocks.abs().amax(-1) > 0, codes, 0).amax(-1).clamp(min=3)
    unit = 2.0 ** (largest[:, None, None] - 127 - 4).double()
    return ((blocks / unit).round() * unit).view(*lead, -1)[..., :cols]


@FEW
@given(
    rows=st.integers(1, 150),
    cols=st.integers(1, 400),
    tokens=TOKENS,
    dtype=DTYPES,
    bias=st.booleans(),
    residual=st.booleans(),
    largest=st.sampled_from([1.0, 1e30, 1e-30, 1e-41]),
)
def test_a_product_with_int8_is_that_of_the_rounded_vectors(
    form, rows, cols, tokens, dtype, bias, residual, largest
):
    x = normal(tokens, cols) * 2 ** (normal(tokens, cols, seed=7).clamp(-2, 2) * 3)
    x = (x / x.abs().max() * largest).to(dtype)
    weight = quantize(normal(rows, cols, seed=1))
    b = normal(rows, seed=2, dtype=dtype) if bias else None
    r = normal(tokens, rows, seed=3, dtype=dtype) if residual else None
    found = form(reading, ROUNDED.linear, x, weight, b, residual=r)
    assert found.dtype is dtype
    left, right = rounded(x), weight.dense().double()
    expected = left @ right.T
    for addend in (b, r):
        expected = expected if addend is None else expected + addend.double()
    terms = left.abs() @ right.abs().T + sum(t.double().abs() for t in (b, r) if t is not None)
    bits = 2**-8 if dtype is torch.bfloat16 else 2**-22
    assert ((found.double() - expected).abs() <= bits * expected.abs() + 1e-6 * terms + 1e-38).all()


def test_rounding_shows(form):
    x, weight = normal(40, 256), quantize(normal(70, 256, seed=1))
    exact = x.double() @ weight.dense().double().T
    found = form(reading, ROUNDED.linear, x, weight)
    assert 3e-3 < relative_error(found, exact) < 2e-2
    assert relative_error(form(ROUNDED.linear, x, weight), exact) < 1e-6  # outside of a pass
    few = form(reading, ROUNDED.linear, x[:16], weight)
    assert relative_error(few, exact[:16]) < 1e-6


@FEW
@given(
    rows=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    cols=st.integers(1, 300),
    dtype=DTYPES,
)
def test_linears_are_the_bits_of_each_linear(form, rows, cols, dtype):
    x = normal(20, cols, dtype=dtype)
    weights = [quantize(normal(n, cols, seed=i)) for i, n in enumerate(rows)]
    biases = [normal(n, seed=i, dtype=dtype) for i, n in enumerate(rows)]
    found = form(lambda: torch.cat(reading(ROUNDED.linears, x, weights, biases), dim=-1))
    each = [form(reading, ROUNDED.linear, x, w, b) for w, b in zip(weights, biases, strict=True)]
    assert torch.equal(found, torch.cat(each, dim=-1))


def test_the_largest_sums_are_exact(form):
    for sign in (1.0, -1.0):
        x = torch.full((20, 128), sign * 127.0)
        for code in (-128, -127, 127):
            weight = Int8(torch.full((5, 128), code, dtype=torch.int8), torch.ones(5, 1))
            found = form(reading, ROUNDED.linear, x, weight)
            assert torch.equal(found, torch.full((20, 5), sign * 127.0 * code * 128))


def experts_of(x, choices, gate_up, down, biases, clamp, backend):
    weights, ids = choices
    return Flat(backend).moe(x, ids, weights, gate_up, biases[0], down, biases[1], clamp=clamp)


def defined(x, choices, gate_up, down, biases, clamp) -> torch.Tensor:
    """The experts' sums in float64, of vectors rounded before each product."""
    weights, ids = choices
    first, second = byte_matrix(gate_up), byte_matrix(down)
    inputs, out = rounded(x), torch.zeros(x.shape, dtype=torch.float64)
    flat = Flat(REFERENCE)
    for token in range(len(x)):
        for expert, weight in zip(ids[token].tolist(), weights[token].double(), strict=True):
            pairs = first[expert] @ inputs[token] + biases[0][expert].double()
            halves = pairs[0::2], pairs[1::2]
            units = (
                flat.swiglu(*halves)
                if clamp is None
                else flat.clamped_swiglu(*halves, limit=clamp[0], alpha=clamp[1])
            )
            out[token] += weight * (
                second[expert] @ rounded(units[None])[0] + biases[1][expert].double()
            )
    return out


def scaled(*shape: int, seed: int, spread: int) -> MXFP4:
    """Packed matrices whose blocks' powers of two differ by up to `spread`."""
    weight = packed(*shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randint(120 - spread, 121, weight.scales.shape, generator=generator)
    return MXFP4(weight.blocks, scales.to(torch.uint8))


@FEW
@given(
    tokens=st.sampled_from([17, 40, 90]),
    count=st.integers(1, 4),
    hidden=st.sampled_from([32, 96, 128, 160, 416]),
    inter=st.sampled_from([32, 96, 128, 160]),
    dtype=DTYPES,
    clamp=st.sampled_from([None, (7.0, 1.702)]),
    spread=st.sampled_from([0, 3, 12]),
)
def test_experts_are_those_of_rounded_vectors(
    form, tokens, count, hidden, inter, dtype, clamp, spread
):
    x = normal(tokens, hidden, dtype=dtype)
    choices = normal(tokens, count, seed=1).softmax(-1).topk(min(2, count))
    gate_up = scaled(count, 2 * inter, hidden, seed=4, spread=spread)
    down = scaled(count, hidden, inter, seed=5, spread=spread)
    biases = normal(count, 2 * inter, seed=2, dtype=dtype), normal(count, hidden, seed=3).to(dtype)
    arguments = choices, gate_up, down, biases, clamp
    found = form(reading, experts_of, x, *arguments, ROUNDED)
    # A unit of the hidden layer that float32 puts on the other side of a half becomes another code.
    limit = 2**-8 if dtype is torch.bfloat16 else 5e-4
    assert relative_error(found, defined(x, *arguments)) <= limit


def test_a_block_of_zeros_does_not_count(form):
    gate_up, down = (scaled(2, *shape, seed=4, spread=2) for shape in ((256, 128), (128, 128)))
    for weight in (gate_up, down):
        weight.blocks[:, :, 1] &= 0x88  # zeros of both signs
    x, biases = normal(30, 128), (torch.zeros(2, 256), torch.zeros(2, 128))
    choices = normal(30, 2, seed=1).softmax(-1).topk(1)
    before = form(reading, experts_of, x, choices, gate_up, down, biases, None, ROUNDED)
    for weight in (gate_up, down):
        weight.scales[:, :, 1] = 150
    found = form(reading, experts_of, x, choices, gate_up, down, biases, None, ROUNDED)
    assert found.norm() > 0
    assert torch.equal(found, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_spoils_its_token_or_its_row_only(form, bad):
    x, weight = normal(20, 300), quantize(normal(80, 300, seed=1))
    healthy = form(reading, ROUNDED.linear, x, weight)
    sick = x.clone()
    sick[3, 299] = bad
    found = form(reading, ROUNDED.linear, sick, weight)
    others = [t for t in range(20) if t != 3]
    assert found[3].isnan().all()
    assert torch.equal(found[others], healthy[others])
    gate_up, down = (packed(2, *shape, seed=4) for shape in ((256, 128), (128, 128)))
    x, biases = normal(30, 128), (torch.zeros(2, 256), torch.zeros(2, 128))
    choices = torch.ones(30, 1), torch.arange(30)[:, None] % 2
    healthy = form(reading, experts_of, x, choices, gate_up, down, biases, None, ROUNDED)
    down.scales[1, 71, 2] = 255
    found = form(reading, experts_of, x, choices, gate_up, down, biases, None, ROUNDED)
    assert found[1::2, 71].isnan().all()
    assert torch.equal(found[0::2], healthy[0::2])
    others = [r for r in range(128) if r != 71]
    assert torch.equal(found[:, others], healthy[:, others])


EXTREMES = st.sampled_from([0.0, 1e-44, 1e-30, 1.0, 1e30, 3e38, math.inf, math.nan])


@pytest.fixture(scope="module")
def both_forms() -> tuple[Forms, Forms]:
    """AVX-512's bytes, which other tests compare with the definition, and a matrix unit's."""
    return Forms("avx512"), Forms("amx-emulated")


@FEW
@given(
    rows=st.integers(1, 200),
    cols=st.integers(1, 400),
    tokens=TOKENS,
    dtype=DTYPES,
    of_tokens=EXTREMES,
    of_rows=EXTREMES,
)
def test_int8_on_a_matrix_unit_has_the_bits_of_avx512(
    both_forms, rows, cols, tokens, dtype, of_tokens, of_rows
):
    x, weight = normal(tokens, cols, dtype=dtype), quantize(normal(rows, cols, seed=1))
    x[tokens // 2] *= of_tokens
    weight.scales[rows // 2] *= of_rows
    weight.codes[rows // 3] = -128
    words, tiles = (form(reading, ROUNDED.linear, x, weight) for form in both_forms)
    assert torch.equal(words.nan_to_num(), tiles.nan_to_num())
    assert torch.equal(words.isnan(), tiles.isnan())


@FEW
@given(
    tokens=TOKENS,
    count=st.integers(1, 5),
    hidden=st.integers(1, 13),
    inter=st.integers(1, 9),
    dtype=DTYPES,
    of_tokens=EXTREMES,
    lowest=st.sampled_from([0, 90, 117]),
    span=st.sampled_from([1, 5, 10, 256]),
)
def test_mxfp4_on_a_matrix_unit_has_the_bits_of_avx512(
    both_forms, tokens, count, hidden, inter, dtype, of_tokens, lowest, span
):
    """Also powers of two of every kind, NaN's among them; and of experts that nobody chose."""
    x = normal(tokens, 32 * hidden, dtype=dtype)
    x[tokens // 2] *= of_tokens
    generator = torch.Generator().manual_seed(2)
    stacks = []
    for shape in ((2 * inter * 32, hidden * 32), (hidden * 32, inter * 32)):
        weight = packed(count, *shape, seed=4)
        scales = torch.randint(
            lowest, min(lowest + span, 256), weight.scales.shape, generator=generator
        )
        weight.blocks[:, ::5, -1] &= 0x88  # zeros of both signs
        stacks.append(MXFP4(weight.blocks, scales.to(torch.uint8)))
    choices = torch.rand(tokens, 1, generator=generator), torch.full((tokens, 1), count - 1)
    choices[1][::3] = 0
    biases = normal(count, 64 * inter, dtype=dtype), normal(count, 32 * hidden, dtype=dtype)
    words, tiles = (
        form(reading, experts_of, x, choices, *stacks, biases, (7.0, 1.702), ROUNDED)
        for form in both_forms
    )
    assert torch.equal(words.nan_to_num(), tiles.nan_to_num())
    assert torch.equal(words.isnan(), tiles.isnan())


def test_a_model_on_a_matrix_unit_says_what_it_says_on_avx512():
    """To the bit: in float32 all else is computed alike."""
    said = []
    for isa, activations in (("avx512", "int8"), ("amx-emulated", "int8"), ("amx-emulated", None)):
        try:
            machine = cpu.Machine(2, isa)
        except ValueError:
            pytest.skip(missing(isa))
        with cpu.using(machine):
            decoder = load_model(
                packaged_model(), dtype=torch.float32, dense="int8", activations=activations
            )
            engine = Engine(decoder, EngineOptions(max_batch=4, prefill_chunk=128))
            sampling = SamplingParams(temperature=0, max_tokens=6, logprobs=2, prompt_logprobs=1)
            draw = torch.Generator().manual_seed(0)
            prompts = [torch.randint(0, 2000, (n,), generator=draw).tolist() for n in (9, 300, 70)]
            said.append(engine.generate([Request(tuple(ids), sampling) for ids in prompts]))
    assert said[0] == said[1]
    assert said[1] != said[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_token_gets_the_same_bits_among_any_others(form, dtype):
    x, weight = normal(300, 200, dtype=dtype), quantize(normal(70, 200, seed=1))
    everything = form(reading, ROUNDED.linear, x, weight)
    for first, last in ((0, 17), (5, 40), (31, 300)):
        some = form(reading, ROUNDED.linear, x[first:last], weight)
        assert torch.equal(some, everything[first:last])


def step(*counts: int, one_query: bool = False) -> PagedKV:
    """A step's pages, for sequences of so many tokens each; none of them is read here."""
    kind = LayerKind(None, 1, 8)
    lengths = torch.tensor(counts)
    tables = {kind: torch.zeros(len(counts), 1, dtype=torch.int32)}
    spans = None if one_query else [(count, count) for count in counts]
    return PagedKV(PagePool([kind], {kind: 1}), tables, lengths, lengths, spans, one_query)


@torch.no_grad()
def test_of_a_step_only_prompts_are_rounded():
    weight, x = quantize(normal(70, 128, seed=1)), normal(62, 128)
    gate_up, down = (packed(3, *shape, seed=4) for shape in ((256, 128), (128, 128)))
    biases = normal(3, 256, seed=2), normal(3, 128, seed=3)
    top = normal(62, 3, seed=5).softmax(-1).topk(2)
    routing = Routing(top.indices, top.values)

    def both(backend, rows):
        linear = backend.linear(x[rows], weight, residual=x[rows, :70])
        (also,) = backend.linears(x[rows], [weight], [None])
        choices = routing.weights[rows], routing.experts[rows]
        moe = experts_of(x[rows], choices, gate_up, down, biases, None, backend)
        return torch.cat([linear, also, moe], dim=1)

    everything = slice(None)
    exact, fast = both(cpu.CPU, everything), reading(both, ROUNDED, everything)
    assert relative_error(fast, exact) > 1e-3
    for one_query in (False, True):  # a step that decodes 62 texts
        where = step(*[1] * 62, one_query=one_query)
        assert torch.equal(reading(both, ROUNDED, everything, where=where), exact)
    assert torch.equal(reading(both, ROUNDED, everything, where=step(40, 22)), fast)
    # One text decodes beside two prompts.
    found = reading(both, ROUNDED, everything, where=step(40, 1, 21))
    rows = [i for i in range(62) if i != 40]
    assert torch.equal(found[rows], fast[rows])
    assert torch.equal(found[40:41], both(cpu.CPU, slice(40, 41)))
    # Short prompts, whatever they share a step with.
    found = reading(both, ROUNDED, everything, where=step(40, 10, 12))
    assert torch.equal(found[:40], fast[:40])
    assert torch.equal(found[40:], both(cpu.CPU, slice(40, 62)))
    assert torch.equal(reading(both, ROUNDED, everything, where=step(16, 16, 15, 15)), exact)
