"""The decoder is GPT-2, Qwen3 and gpt-oss: `transformers` with the same weights says the same, on
texts many windows long and beyond the original length of YaRN.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig
from transformers.utils.quantization_config import Mxfp4Config

import ossia
from ossia.config import RoPE
from ossia.engine import Engine, Request, SamplingParams
from ossia.ops import REFERENCE
from ossia.options import EngineOptions
from tests.transformers_models import CONFIGS, GPT_OSS, YARN, load_complete, random_model, tokens


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """A transformers model and ours, loaded from what it saved."""
    theirs = random_model(CONFIGS[request.param])
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, ossia.load_model(folder)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def theirs_greedy(model, prompt: list[int], count: int) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=count, eos_token_id=None
    )
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def greedy_without_cache(decoder, prompt: list[int], count: int) -> list[int]:
    """The whole text again for each token."""
    text = torch.tensor([prompt])
    for _ in range(count):
        text = torch.cat([text, decoder(text)[:, -1:].argmax(-1)], dim=1)
    return text[0, len(prompt) :].tolist()


def greedy_with_pages(decoder, prompts: list[list[int]], count: int, **settings) -> list[list[int]]:
    engine = Engine(decoder, EngineOptions(kv_memory="64MiB", **settings))
    sampling = SamplingParams(temperature=0.0, max_tokens=count)
    return [result.tokens for result in engine.generate([Request(p, sampling) for p in prompts])]


@torch.no_grad()
def test_logits_agree(pair):
    theirs, ours = pair
    text = tokens(2, 300)
    assert relative_error(ours(text), theirs(text).logits) <= 1e-5


def test_greedy_continuations_agree_with_cache_and_without_alone_and_together(pair):
    theirs, ours = pair
    prompts = [tokens(1, length, seed=length)[0].tolist() for length in (1, 23, 90)]
    expected = [theirs_greedy(theirs, prompt, 64) for prompt in prompts]
    assert [greedy_without_cache(ours, prompt, 64) for prompt in prompts] == expected
    assert [greedy_with_pages(ours, [prompt], 64)[0] for prompt in prompts] == expected
    assert greedy_with_pages(ours, prompts, 64) == expected
    assert greedy_with_pages(ours, prompts, 64, page_size=4, prefill_chunk=5) == expected


@torch.no_grad()
def test_what_we_save_transformers_loads(pair, tmp_path):
    theirs, ours = pair
    ossia.save_model(ours, tmp_path / "ours")
    again = load_complete(tmp_path / "ours")
    weights = again.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in theirs.state_dict().items())
    # Products may round otherwise where the weights lie at other addresses.
    text = tokens(2, 50)
    torch.testing.assert_close(again(text).logits, theirs(text).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_packed_experts_agree_and_survive_a_round_trip(tmp_path):
    theirs = random_model(GPT_OSS)
    theirs.save_pretrained(tmp_path / "dense")
    ossia.save_model(ossia.load_model(tmp_path / "dense"), tmp_path / "packed", experts="mxfp4")
    ours = ossia.load_model(tmp_path / "packed")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed",
        dtype=torch.float32,
        quantization_config=Mxfp4Config(dequantize=True),
    ).eval()
    text = tokens(2, 300)
    expected = theirs(text).logits
    assert relative_error(ours(text), expected) <= 1e-5
    ossia.save_model(ours, tmp_path / "again")
    again = ossia.load_model(tmp_path / "again")
    assert torch.equal(again(text), ours(text))
    ossia.save_model(ours, tmp_path / "unpacked", experts="dense")
    unpacked = ossia.load_model(tmp_path / "unpacked")
    assert relative_error(unpacked(text), expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gpt-oss"])
def test_in_bfloat16_ours_is_as_near_to_the_float32_model_as_theirs(name, tmp_path):
    exact, text = random_model(CONFIGS[name]), tokens(1, 200)
    for parameter in exact.parameters():
        parameter.copy_(parameter.bfloat16())
    expected = exact(text).logits
    theirs = exact.bfloat16()
    theirs.save_pretrained(tmp_path)
    ours = ossia.load_model(tmp_path)
    assert ours.dtype is torch.bfloat16
    error = relative_error(ours(text), expected)
    assert error <= 1.1 * relative_error(theirs(text).logits.float(), expected)


@torch.no_grad()
def test_a_position_past_the_training_length_turns_as_theirs_does():
    """YaRN's frequencies, bit for bit, for the published configuration."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    preset = ossia.config("gpt-oss-20b")
    config = GptOssConfig(
        rope_parameters={**YARN, "original_max_position_embeddings": 4096, "truncate": False},
        head_dim=64,
    )
    assert isinstance(preset.position, RoPE)
    positions = torch.tensor([[0, 1, 4095, 4096, 131071]])
    cos, sin = GptOssRotaryEmbedding(config)(torch.zeros(1), positions)
    ours = REFERENCE.rope_table(positions, preset.position, 64)
    assert torch.equal(ours[0], cos)
    assert torch.equal(ours[1], sin)
