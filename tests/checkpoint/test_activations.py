"""load(activations="int8"): the numbers of prompts change, those of single tokens do not, and
models and backends that it is not for are refused.
"""

from __future__ import annotations

import logging

import pytest
import torch

from ossia import LLM, OssiaError, ops
from ossia import load_model as load
from ossia.checkpoint import packaged_model
from ossia.engine import Engine, Request, SamplingParams
from ossia.options import EngineOptions, LoadOptions
from tests.scripted import write_byte_tokenizer
from tests.tiny_checkpoints import GPT2_CONFIG, gpt2_tensors, write

pytest.importorskip("ossia.ops.cpu", reason="the native kernels were not built")
from ossia.ops.cpu.prompts import ROUNDED_PROMPTS


@pytest.fixture
def gpt2(tmp_path):
    return write(tmp_path / "gpt2", GPT2_CONFIG, gpt2_tensors())


@pytest.fixture
def packaged():
    return packaged_model()


@torch.no_grad()
def test_prompts_differ_a_little_and_short_ones_not_at_all(packaged):
    exact, fast = load(packaged, device="cpu"), load(packaged, device="cpu", activations="int8")
    tokens = torch.randint(0, 2000, (1, 200), generator=torch.Generator().manual_seed(0))
    expected, found = exact(tokens), fast(tokens)
    error = (found - expected).norm() / expected.norm()
    assert 1e-3 < error < 0.1
    assert torch.equal(fast(tokens[:, :9]), exact(tokens[:, :9]))


def test_what_follows_a_short_prompt_is_as_without(packaged):
    """No step of the engine reads more than a few tokens, though many texts decode together."""
    prompts = [tuple(range(10 + i, 22 + i)) for i in range(20)]
    results = []
    for activations in (None, "int8"):
        decoder = load(packaged, device="cpu", activations=activations)
        engine = Engine(decoder, EngineOptions(max_batch=20, prefill_chunk=12))
        requests = [
            Request(prompt, SamplingParams(temperature=0, max_tokens=5)) for prompt in prompts
        ]
        results.append(engine.generate(requests))
    assert results[0] == results[1]


def test_the_weights_that_it_is_for_are_named(gpt2, gpt_oss, caplog):
    with pytest.raises(OssiaError, match="this model has neither in memory: add --dense int8"):
        load(gpt2, device="cpu", activations="int8")
    caplog.set_level(logging.INFO, "ossia")
    load(gpt2, device="cpu", activations="int8", dense="int8")
    assert "prompts multiply matrices in int8" in caplog.messages[-1]
    load(gpt_oss, device="cpu", activations="int8")
    assert "prompts multiply experts in MXFP4; others exactly" in caplog.messages[-1]
    load(gpt_oss, device="cpu", activations="int8", dense="int8")
    assert caplog.messages[-1].endswith("prompts multiply experts in MXFP4 and matrices in int8")


@torch.no_grad()
def test_experts_that_are_read_from_disk_are_multiplied_exactly(gpt_oss):
    """They arrive in parts that differ from run to run."""
    decoder = load(gpt_oss, device="cpu", backend="cpu", expert_memory="10kB")
    tokens = torch.randint(0, decoder.config.vocab_size, (1, 40))
    exact = decoder(tokens)
    assert torch.equal(decoder.on(ROUNDED_PROMPTS)(tokens), exact)
    with pytest.raises(OssiaError, match="has neither in memory"):
        load(gpt_oss, device="cpu", backend="cpu", expert_memory="10kB", activations="int8")


def test_a_draft_model_needs_no_weights_that_it_is_for(gpt2, tmp_path):
    for folder in (gpt2, target := write(tmp_path / "target", GPT2_CONFIG, gpt2_tensors())):
        write_byte_tokenizer(folder)
    LLM(target, activations="int8", dense="int8", speculate=str(gpt2)).close()


def test_what_cannot_round_refuses(gpt_oss):
    with pytest.raises(OssiaError, match=r"--activations int8 .* with --backend reference"):
        load(gpt_oss, device="cpu", backend="reference", activations="int8")
    with pytest.raises(OssiaError, match=r"--activations int8 .* on cuda:0"):
        ops.check("auto", "cuda:0", rounds=True)
    with pytest.raises(OssiaError, match="leave --devices out"):
        LoadOptions(activations="int8", devices=2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(OssiaError, match="--activations must be int8, not int4"):
        LoadOptions(activations="int4")  # pyright: ignore[reportArgumentType]


def test_a_matrix_unit_that_multiplies_no_bytes_refuses(gpt_oss, monkeypatch):
    from ossia.ops import cpu

    class Machine:
        isa, remark, threads, multiplies_bytes = "avx512+amx", "", 1, False

    monkeypatch.setattr(cpu, "machine", Machine)
    with pytest.raises(OssiaError, match=r"AMX unit multiplies no int8.*: leave --activations out"):
        load(gpt_oss, device="cpu", activations="int8")
    Machine.multiplies_bytes = True
    assert load(gpt_oss, device="cpu", activations="int8").ops is ROUNDED_PROMPTS
