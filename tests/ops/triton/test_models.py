"""Whole models on the kernels: greedy tokens through the engine, and steps without a wait."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from ossia import families
from ossia.config import ModelConfig
from ossia.engine import Request, SamplingParams
from ossia.model import Decoder
from ossia.model.linear import Experts
from ossia.ops import REFERENCE, mxfp4
from ossia.ops.paged import PagedKV, PagePool
from ossia.ops.triton import TRITON, recording
from ossia.ops.triton.launch import CARDS
from ossia.ops.triton.paired import PairedMXFP4
from tests.engine.engines import engine as build
from tests.models import gpt2_like, gpt_oss_like, qwen3_like, qwen3_moe_like

NEW = 3
launching = import_module("ossia.ops.triton.launch")  # the package has a function of this name


def gpt_oss_packed() -> ModelConfig:
    """Sizes that MXFP4 can pack; its experts are packed when the model is built."""
    config = gpt_oss_like()
    layers = tuple(
        replace(layer, feedforward=replace(layer.feedforward, intermediate_size=64))
        for layer in config.layers
    )
    return replace(config, hidden_size=64, layers=layers)


CONFIGS = [gpt2_like, qwen3_like, qwen3_moe_like, gpt_oss_like, gpt_oss_packed]


def decoder_of(make, ops, device) -> Decoder:
    """Two layers, with the same weights for each backend, large enough that tokens depend on what
    is read.
    """
    config = make()
    config = replace(config, layers=config.layers[:2])
    decoder = Decoder(config, ops).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in decoder.named_parameters():
        parameter.normal_(0, 0.1 if name.endswith("bias") else 1.0, generator=generator)
    if make is gpt_oss_packed:
        for module in decoder.modules():
            if isinstance(module, Experts):
                weight = module.value
                assert isinstance(weight, torch.Tensor)
                module.replace(mxfp4.quantize(weight))
    decoder.to(device).place()
    return decoder


@pytest.mark.parametrize("make", CONFIGS)
def test_greedy_tokens_are_the_references(device, make):
    """In float32: prompts in chunks, together and of different lengths, past windows and pages."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in (1, 13)]
    sampling = SamplingParams(temperature=0, max_tokens=NEW)
    tokens = []
    for ops, place in ((REFERENCE, torch.device("cpu")), (TRITON, device)):
        engine = build(decoder_of(make, ops, place), page_size=8, prefill_chunk=10)
        results = engine.generate(Request(prompt, sampling) for prompt in prompts)
        tokens.append([result.tokens for result in results])
    assert tokens[1] == tokens[0]
    assert len({token for text in tokens[0] for token in text}) > 2


@pytest.mark.gpu
@pytest.mark.parametrize("make", CONFIGS)
@pytest.mark.parametrize("kv", [None, "fp8"])
def test_no_order_of_launches_changes_a_token(make, kv, monkeypatch):
    """Graphs, steps that are launched ahead, and kernels that start early."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in (1, 13, 40)]
    decoder = decoder_of(make, TRITON, torch.device("cuda"))
    found = []
    for recorded, ahead, early in ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2)):
        monkeypatch.setattr(launching, "_EARLIEST", early)
        engine = build(decoder, page_size=8, prefill_chunk=16, kv=kv)
        engine.ahead = bool(ahead)
        if not recorded:
            engine.runner._recorder = None
        requests = [
            Request(prompt, SamplingParams(temperature=1.0, seed=i, max_tokens=9 + 4 * i))
            for i, prompt in enumerate(prompts)
        ]
        found.append([result.tokens for result in engine.generate(requests)])
    assert all(tokens == found[0] for tokens in found)


@pytest.mark.parametrize("make", [gpt2_like, gpt_oss_like])
def test_whole_rows_have_the_references_logits(device, make):
    ids = torch.randint(0, 97, (2, 6), generator=torch.Generator().manual_seed(1))
    found = decoder_of(make, TRITON, device)(ids.to(device)).cpu()
    expected = decoder_of(make, REFERENCE, "cpu").double()(ids)
    assert (found - expected).abs().amax() <= 2e-5 * expected.abs().amax()


# Kernels of this backend in each layer of a decoding step. Above 16 tokens the dense products are
# cuBLAS's, which only few tokens make too slow.
LAUNCHES = {
    ("gpt2", 1): 7,
    ("gpt2", 64): 3,
    ("qwen3-0.6b", 1): 7,
    ("qwen3-0.6b", 64): 5,
    ("gpt-oss-20b", 1): 6,
    ("gpt-oss-20b", 64): 8,
}


@pytest.mark.parametrize(("preset", "rows"), LAUNCHES)
@pytest.mark.parametrize("decoding", [True, False])
def test_a_step_never_waits_for_the_card(preset, rows, decoding):
    """Meta tensors have no numbers to wait for. The host may not even know how many tokens of a
    prompt each sequence reads.
    """
    config = families.preset(preset)
    assert config is not None
    with recording(CARDS[90]) as launches, torch.device("meta"), torch.inference_mode():
        decoder = Decoder(config, TRITON).bfloat16().eval()
        _place_without_numbers(decoder)
        pages = dict.fromkeys(decoder.layer_kinds, 64)
        pool = PagePool(decoder.layer_kinds, pages, device="meta")
        table = torch.zeros(rows, 8, dtype=torch.int32)
        numbers = torch.zeros(4, rows, dtype=torch.int64)
        where = PagedKV(
            pool, dict.fromkeys(pool.kinds, table), numbers[2], numbers[3],
            one_query=decoding, apart=decoding,
        )  # fmt: skip
        context = decoder.context(numbers[0], numbers[1], where)
        logits = decoder.unembed(decoder.hidden_states(numbers[0], context))
    assert logits.shape == (rows, config.vocab_size)
    assert logits.dtype is torch.float32
    # Queries of a prompt append their keys and values first. Four: the tokens' and positions'
    # vectors, the last norm, the logits.
    in_layer = LAUNCHES[preset, rows] + (not decoding)
    assert len(launches) == in_layer * len(config.layers) + 4


def _place_without_numbers(decoder: Decoder) -> None:
    """`Decoder.place` checks scales, which a meta tensor has none of."""
    for module in decoder.modules():
        if isinstance(module, Experts) and isinstance(module.value, mxfp4.MXFP4):
            *lead, cols = module.value.shape
            pairs = torch.empty(*lead, cols // 64, 32, dtype=torch.uint8)
            scales = torch.empty(*lead, cols // 32, dtype=torch.uint8)
            module.replace(PairedMXFP4(pairs, scales, cols))
