"""That llama.cpp is given the same model: its logits are ours. Needs the extra `peers`."""

from dataclasses import replace

import pytest
import torch

from ossia.config import (
    AttentionConfig,
    ClampedSwiGLU,
    ExpertFormat,
    LayerConfig,
    ModelConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    Rounding,
    Router,
    YaRN,
)
from ossia.families import PRESETS
from ossia.measure.random_weights import random_decoder
from ossia.ops import mxfp4

gguf = pytest.importorskip("gguf", reason="GGUF files need the extra `peers`")
from bench.peers_cpu import gguf_files  # noqa: E402

Q8_0, BF16 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.BF16


def test_repacked_experts_stand_for_the_same_numbers():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 5, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 150, (3, 5, 4), dtype=torch.uint8, generator=generator)
    packed = gguf_files.repack(blocks, scales).view(3, 5, -1).numpy()
    theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.MXFP4)
    ours = mxfp4.unpack(mxfp4.MXFP4(blocks, scales), torch.float32)
    assert torch.equal(torch.from_numpy(theirs), ours)


def test_q8_0_is_that_of_the_reference_up_to_ties():
    matrix = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    matrix[3, 32:64] = 0
    ours = gguf.quants.dequantize(gguf_files.quantize_q8_0(matrix).numpy(), Q8_0)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(matrix.numpy(), Q8_0), Q8_0)
    step = matrix.view(8, 3, 32).abs().amax(-1, keepdim=True).expand(8, 3, 32).reshape(8, 96) / 127
    assert ((torch.from_numpy(ours) - torch.from_numpy(theirs)).abs() <= 1.01 * step).all()
    assert ((torch.from_numpy(ours) - matrix).abs() <= 0.57 * step).all()


def small_gpt_oss():
    """All experts are chosen: rounding cannot change which. The bounds of YaRN's ramp are whole, as
    llama.cpp has them.
    """
    router = Router.TOP_K_THEN_SOFTMAX
    moe = MoEConfig(4, 4, 96, ClampedSwiGLU(), router, bias=True, format=ExpertFormat.MXFP4)
    layers = tuple(
        LayerConfig(AttentionConfig(8, 2, 64, window, bias=True, sinks=True), moe)
        for window in (8, None, 8, None)
    )
    position = RoPE(150_000.0, YaRN(32.0, 64, truncate=True))
    return ModelConfig(512, 128, 256, layers, position, RMSNorm(1e-5, Rounding.AFTER_WEIGHT))


def small_qwen3():
    config = PRESETS["qwen3-0.6b"]
    return replace(config, layers=config.layers[:2], vocab_size=512)


@pytest.mark.parametrize(("dense", "error"), [(BF16, 0.015), (Q8_0, 0.03)])
@pytest.mark.parametrize("config", [small_gpt_oss(), small_qwen3()], ids=["gpt-oss", "qwen3"])
def test_llama_cpp_computes_the_same_logits(config, dense, error, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama.cpp is in the extra `peers`")
    from bench.peers_cpu.peers import LlamaCpp

    decoder = random_decoder(replace(config, dtype="float32"))
    gguf_files.write(decoder, tmp_path / "model.gguf", dense)
    prompt = torch.randint(512, (40,), generator=torch.Generator().manual_seed(1))
    model = LlamaCpp(tmp_path / "model.gguf", threads=1, context=64)
    model.prefill([prompt[:20].tolist()])  # what was read before leaves nothing behind
    model.prefill([prompt.tolist()])
    for _ in range(2):
        theirs = model.logits().clone()
        ours = decoder(prompt[None])[0, -1]
        assert (theirs - ours).norm() < error * ours.norm()
        prompt = torch.cat([prompt, theirs.argmax()[None]])
        model.step()
