"""Tiny models of `transformers`, the independent reference. CONFIGS have awkward shapes: heads that
do not divide hidden, groups unlike the KV heads. The functions build models to train, without
dropout.
"""

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

C = TypeVar("C", bound=PreTrainedConfig)


def configured(kind: type[C], **values: Any) -> C:
    """Also with values that a config takes and its constructor's signature does not name."""
    return kind(**values)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
GPT2 = GPT2Config(vocab_size=101, n_embd=60, n_head=5, n_layer=3, n_positions=320)
QWEN3 = Qwen3Config(
    vocab_size=101,
    hidden_size=40,
    intermediate_size=72,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=18,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    tie_word_embeddings=True,
)
QWEN3_YARN = configured(
    Qwen3Config,
    **{**QWEN3.to_dict(), "tie_word_embeddings": False, "rope_parameters": {**YARN, "factor": 4.0}},
)
QWEN3_MOE = configured(
    Qwen3MoeConfig,
    vocab_size=101,
    hidden_size=40,
    moe_intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=10,
    num_experts=7,
    num_experts_per_tok=3,
    norm_topk_prob=True,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 1e7},
)
QWEN3_MOE_RAW = configured(Qwen3MoeConfig, **{**QWEN3_MOE.to_dict(), "norm_topk_prob": False})
GPT_OSS = GptOssConfig(
    vocab_size=101,
    hidden_size=96,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=20,
    num_local_experts=5,
    num_experts_per_tok=3,
    sliding_window=7,
    max_position_embeddings=2048,
    rope_parameters={**YARN, "truncate": False},
    layer_types=["sliding_attention", "full_attention"] * 2,
    pad_token_id=0,
    eos_token_id=1,
)
CONFIGS = {
    "gpt2": GPT2,
    "qwen3": QWEN3,
    "qwen3 untied, YaRN": QWEN3_YARN,
    "qwen3 moe": QWEN3_MOE,
    "qwen3 moe, weights not renormalised": QWEN3_MOE_RAW,
    "gpt-oss": GPT_OSS,
}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Weights large enough that every part matters: norms unlike 1, biases and sinks unlike 0."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name or ".ln_" in name
            scale = 0.3 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.normal_(1.0 if is_norm and name.endswith("weight") else 0.0, scale)
    return model


def load_complete(folder: Path, **options: Any) -> PreTrainedModel:
    """What transformers reads there, after it found every tensor, and no other."""
    found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], found)
    assert not any(report.values()), report
    return model.eval()


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 101, (batch, length), generator=torch.Generator().manual_seed(seed))


VOCAB = 97  # of the models to train


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=64,
            n_embd=48,
            n_layer=2,
            n_head=3,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def gpt_oss() -> GptOssForCausalLM:
    return GptOssForCausalLM(
        configured(
            GptOssConfig,
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=8,
            max_position_embeddings=128,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 32,
                "truncate": False,
            },
            pad_token_id=VOCAB - 1,  # whose embedding transformers never moves
            eos_token_id=0,
            attn_implementation="eager",
        )
    )


def qwen3_moe() -> Qwen3MoeForCausalLM:
    return Qwen3MoeForCausalLM(
        configured(
            Qwen3MoeConfig,
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            moe_intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            max_position_embeddings=128,
        )
    )
