"""What transformers writes is loaded, and it loads what save writes, weight for weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from ossia import load_model as load
from ossia.checkpoint import save
from tests.transformers_models import configured, load_complete

QWEN3: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=31, n_embd=12, n_head=3, n_layer=2, n_positions=16),
    "gpt2 untied": GPT2Config(
        vocab_size=31, n_embd=12, n_head=3, n_layer=2, n_positions=16, tie_word_embeddings=False
    ),
    "qwen3 tied": Qwen3Config(**QWEN3, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**QWEN3, tie_word_embeddings=False),
    "qwen3 moe": Qwen3MoeConfig(
        **QWEN3, moe_intermediate_size=12, num_experts=5, num_experts_per_tok=2
    ),
    "gpt-oss": configured(
        GptOssConfig,
        **QWEN3 | {"hidden_size": 32, "intermediate_size": 64},
        num_local_experts=3,
        num_experts_per_tok=2,
        sliding_window=8,
        pad_token_id=0,
        eos_token_id=1,
    ),
}


def random_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():  # norms and biases too, which start as 1 and 0
        parameter.data = torch.randn_like(parameter) + name.endswith("norm.weight")
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_there_and_back_every_weight_is_the_same(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    theirs = random_model(CONFIGS[family], dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    decoder = load(tmp_path / "theirs")
    assert decoder.dtype is dtype
    elements = sum(tensor.numel() for tensor in decoder.state_dict().values())
    assert elements == sum(parameter.numel() for parameter in theirs.parameters())

    save(decoder, tmp_path / "ours", max_shard_bytes=10_000)
    back = load_complete(tmp_path / "ours", dtype="auto")
    expected, found = theirs.state_dict(), back.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
