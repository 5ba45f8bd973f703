"""The layout of packed experts, and the assembly that decodes it, which no interpreter runs."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ossia import checkpoint
from ossia.model import Decoder
from ossia.ops.mxfp4 import LUT, MXFP4, NAN_SCALE, quantize, unpack
from ossia.ops.triton import TRITON, fp4
from ossia.ops.triton.paired import PairedMXFP4, pair
from tests.models import build, moe_of, small
from tests.ops.triton import ptx
from tests.ops.triton.common import normal


def stack(*shape: int, low: int = 1, high: int = 129) -> MXFP4:
    """Every code and, between the bounds, every scale."""
    *rows, cols = shape
    generator = torch.Generator().manual_seed(cols)
    blocks = torch.randint(0, 256, (*rows, cols // 32, 16), generator=generator, dtype=torch.uint8)
    blocks.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    scales = torch.randint(low, high, (*rows, cols // 32), generator=generator, dtype=torch.uint8)
    return MXFP4(blocks, scales)


@pytest.mark.parametrize("cols", [32, 64, 96, 256])
def test_every_bit_comes_back(cols):
    before = stack(3, 20, cols)
    after = TRITON.place("layers.0.feedforward.gate_up", before)
    assert isinstance(after, PairedMXFP4)
    assert after.shape == before.shape
    stored = after.stored()
    assert torch.equal(stored.blocks, before.blocks)
    assert torch.equal(stored.scales, before.scales)
    assert torch.equal(after.dense(), unpack(before, torch.float32))
    assert torch.equal(after[1].dense(), unpack(before, torch.float32)[1])
    rebuilt = after.recipe()(after.tensors())
    assert isinstance(rebuilt, PairedMXFP4)
    assert rebuilt.shape == before.shape
    held = sum(tensor.numel() for tensor in after.tensors().values())
    assert held == before.shape.numel() // 32 * 17 or cols % 64


def test_the_scale_of_zeros_does_not_matter():
    numbers = normal(2, 4, 64)
    numbers[0, 1, :32] = 0
    numbers[1, 2] = -0.0
    packed = quantize(numbers)
    assert (packed.scales == 0).any()
    placed = pair(packed)
    assert placed is not None
    assert torch.equal(placed.dense(), unpack(packed, torch.float32))


@pytest.mark.parametrize("scale", [0, 129, 254, NAN_SCALE])
def test_scales_that_the_layout_does_not_hold_stay_as_they_are(scale, caplog):
    packed = stack(2, 4, 64)
    packed.blocks[1, 2, 0, 3] = 0x10
    packed.scales[1, 2, 0] = scale
    assert TRITON.place("layers.3.feedforward.down", packed) is packed
    assert "layers.3.feedforward.down" in caplog.text
    assert len(caplog.messages) == 1


def words_of(values: torch.Tensor) -> list[int]:
    """Bytes, or float16 in pairs, as words."""
    return values.contiguous().view(torch.int32).flatten().tolist()


def test_assembly_decodes_every_byte_for_the_matrix_unit():
    every = torch.arange(256, dtype=torch.uint8)
    for first in range(0, 256, 4):
        bytes_ = every[first : first + 4]
        results = ptx.run(fp4.BRAIN.value, 4, words_of(bytes_))
        numbers = torch.tensor(np.array(results, dtype=np.uint32).view(np.int32)).view(
            torch.bfloat16
        )
        found = numbers.double() * 2.0**fp4.BRAIN_SHIFT
        x = (bytes_ >> 4 & 8) | (bytes_ >> 1 & 7)
        y = (bytes_ & 1) << 3 | (bytes_ >> 4 & 7)
        expected = [LUT[code] for code in (*x.tolist(), *y.tolist())]
        assert found.tolist() == expected


def planes_of(x: torch.Tensor) -> list[int]:
    """The operands of `dot` for words 0 to 3 of one group: for each word its four planes."""
    operands = []
    for word in range(4):
        for plane in range(4):
            at = word % 2 * 16 + word // 2 * 2 + plane // 2 * 32 + plane % 2
            operands += words_of(torch.stack([x[at], x[at + 8]]))
    return operands


@pytest.mark.parametrize("seed", range(20))
def test_assembly_multiplies_the_halves_of_a_group(seed):
    """Exactly where sums fit into float16, and otherwise with an error of eight roundings."""
    packed = stack(1, 16, 64)
    paired = pair(packed)
    assert paired is not None
    row = seed % 16
    ones = MXFP4(packed.blocks, torch.full_like(packed.scales, 127))
    weights = unpack(ones, torch.float32)[0, row].double()
    seen = torch.zeros(64, dtype=torch.bool)  # columns of words 0 to 3
    for word in range(4):
        for plane in range(4):
            at = word % 2 * 16 + word // 2 * 2 + plane // 2 * 32 + plane % 2
            seen[[at, at + 8]] = True
    words = words_of(paired.pairs[0, row, 0])[:4]
    whole = torch.randint(-8, 9, (64,), generator=torch.Generator().manual_seed(seed)).half()
    for x, exact in ((whole * 256, True), (normal(64, seed=seed).half() * 2048, False)):
        results = ptx.run(fp4.DOT.value, 2, [*words, *planes_of(x)])
        found = np.array(results, dtype=np.uint32).view(np.float32).astype(np.float64)
        terms = weights * x.double() * seen * 2.0**-fp4.HALF_SHIFT
        for sum_, part in zip(found, terms.split(32), strict=True):
            error = abs(sum_ - float(part.sum()))
            assert error <= (0 if exact else 8 * 2**-11 * float(part.abs().sum()))


@pytest.mark.parametrize("experts", [None, "dense"])
def test_a_model_in_this_layout_is_saved_as_it_came(tmp_path, experts):
    checkpoint.save(build(small()), tmp_path / "packed", experts="mxfp4")
    model = checkpoint.load(tmp_path / "packed")
    placed = Decoder.assembled(model.config, model.state_dict(), TRITON)
    assert isinstance(moe_of(placed, 0).down.value, PairedMXFP4)
    for decoder, name in ((model, "before"), (placed, "after")):
        checkpoint.save(decoder, tmp_path / name, experts=experts)
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("before", "after")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
