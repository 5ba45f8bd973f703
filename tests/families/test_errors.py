"""A config.json that cannot be honoured is refused in one line that names the file and the key."""

import pytest

from ossia import families
from ossia.errors import OssiaError
from ossia.families import gpt2, gpt_oss, keys, qwen3

MOE, DENSE, GPT_OSS, GPT2 = "qwen3-30b-a3b", "qwen3-0.6b", "gpt-oss-20b", "gpt2"


def hf(preset, **changes):
    """The preset's config.json with some keys changed, or dropped where the value is `...`."""
    data = {**families.to_hf(families.PRESETS[preset]), **changes}
    return {key: value for key, value in data.items() if value is not ...}


YARN = families.to_hf(families.PRESETS[GPT_OSS])["rope_scaling"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "must hold a JSON object, not list"),
        ({}, "missing key 'model_type' (supported: gpt2, qwen3, qwen3_moe, gpt_oss)"),
        ({"model_type": "llama"}, "key 'model_type' is 'llama'; supported are gpt2, qwen3"),
        # unknown
        (hf(GPT2, foo=1), "unknown key 'foo'"),
        (hf(DENSE, foo=1, bar=None), "unknown keys 'bar', 'foo'"),
        (hf(DENSE, auto_map={}), "unknown key 'auto_map'"),
        (hf(DENSE, n_embd=3), "unknown key 'n_embd'"),
        (hf(GPT_OSS, rope_scaling={**YARN, "mscale": 1.0}), "unknown key 'rope_scaling.mscale'"),
        (
            hf(GPT_OSS, quantization_config={"quant_method": "mxfp4", "bits": 4}),
            "unknown key 'quantization_config.bits'",
        ),
        # missing
        (hf(GPT2, n_head=...), "missing key 'n_head'"),
        (hf(GPT2, n_positions=...), "missing key 'n_positions' or 'n_ctx'"),
        (hf(DENSE, hidden_size=None), "missing key 'hidden_size'"),
        (hf(DENSE, rope_theta=..., rope_scaling=...), "missing key 'rope_theta'"),
        (hf(GPT_OSS, rope_scaling={"rope_type": "yarn"}), "missing key 'rope_scaling.factor'"),
        (hf(GPT_OSS, rope_scaling=None), "missing key 'rope_scaling' or 'rope_parameters'"),
        (hf(GPT_OSS, sliding_window=None), "key 'sliding_window' is missing, but some layers"),
        (hf(GPT_OSS, quantization_config={}), "missing key 'quantization_config.quant_method'"),
        # of the wrong type or out of range
        (hf(DENSE, hidden_size="1024"), "key 'hidden_size' must be an integer, not \"1024\""),
        (hf(DENSE, hidden_size=True), "key 'hidden_size' must be an integer, not true"),
        (hf(DENSE, hidden_size=1024.0), "key 'hidden_size' must be an integer, not 1024.0"),
        (hf(DENSE, hidden_size=0), "key 'hidden_size' must be at least 1, not 0"),
        (hf(DENSE, rms_norm_eps="1e-6"), "key 'rms_norm_eps' must be a number"),
        (hf(DENSE, rms_norm_eps=float("nan")), "key 'rms_norm_eps' must be at least 0, not nan"),
        (hf(DENSE, rope_theta=float("inf")), "key 'rope_theta' must be at least 2, not inf"),
        (hf(GPT2, resid_pdrop=1.5), "key 'resid_pdrop' must be at least 0 and at most 1, not 1.5"),
        (hf(DENSE, tie_word_embeddings=1), "key 'tie_word_embeddings' must be true or false"),
        (hf(DENSE, layer_types="full"), "key 'layer_types' must be a list"),
        (hf(DENSE, rope_scaling=4), "key 'rope_scaling' must be an object"),
        (hf(DENSE, eos_token_id=[1, "2"]), "key 'eos_token_id' must hold token ids"),
        (hf(DENSE, torch_dtype="float8"), "key 'torch_dtype' is 'float8'; only float32, bfloat16"),
        (hf(MOE, mlp_only_layers=[48]), "key 'mlp_only_layers' has no such layers: [48]"),
        (hf(MOE, num_experts_per_tok=200), "key 'num_experts_per_tok' 200 exceeds 128 experts"),
        (hf(GPT_OSS, hidden_size=2881), "hidden_size to be a multiple of 32, not 2881"),
        (hf(DENSE, head_dim=127), "RoPE needs an even head_dim, not 127"),
        # contradictory
        (
            hf(GPT_OSS, experts_per_token=8),
            "key 'experts_per_token' is 8, which contradicts 'num_experts_per_tok': 4",
        ),
        (hf(MOE, num_local_experts=64), "key 'num_local_experts' is 64, which contradicts"),
        (hf(GPT2, n_ctx=512), "key 'n_ctx' is 512, which contradicts 'n_positions': 1024"),
        (hf(DENSE, dtype="float32"), "key 'torch_dtype' is \"bfloat16\", which contradicts"),
        (
            hf(GPT_OSS, layer_types=["full_attention"] * 3),
            "key 'layer_types' has 3 entries, 'num_hidden_layers' is 24",
        ),
        (hf(GPT_OSS, initial_context_length=8192), "key 'initial_context_length' is 8192"),
        (
            hf(DENSE, rope_parameters={"rope_theta": 1e4, "rope_type": "default"}),
            "key 'rope_parameters.rope_theta' is 10000, contradicts 'rope_theta': 1e+06",
        ),
        (hf(GPT2, n_head=7), "key 'n_head' 7 does not divide 'n_embd' 768"),
        (hf(DENSE, num_attention_heads=12), "'num_key_value_heads' 8 does not divide"),
        (hf(DENSE, head_dim=..., num_attention_heads=24), "key 'num_attention_heads' 24 does not"),
        (
            hf(DENSE, layer_types=["sliding_attention"] * 28),
            "key 'layer_types' has 'sliding_attention', but no 'sliding_window' is in use",
        ),
        (
            hf(MOE, use_sliding_window=True, sliding_window=64, max_window_layers=2),
            "key 'max_window_layers' leaves layers without the window",
        ),
        # known, but not supported
        (hf(GPT2, activation_function="relu"), "key 'activation_function' is \"relu\"; only"),
        (hf(GPT2, scale_attn_weights=False), "key 'scale_attn_weights' is false; only true"),
        (hf(GPT2, scale_attn_by_inverse_layer_idx=True), "key 'scale_attn_by_inverse_layer_idx'"),
        (hf(GPT2, reorder_and_upcast_attn=True), "key 'reorder_and_upcast_attn'"),
        (hf(GPT2, add_cross_attention=True), "key 'add_cross_attention' is true"),
        (hf(GPT2, pruned_heads={"0": [1]}), "key 'pruned_heads'"),
        (hf(DENSE, hidden_act="gelu"), 'key \'hidden_act\' is "gelu"; only "silu"'),
        (hf(DENSE, partial_rotary_factor=0.5), "key 'partial_rotary_factor' is 0.5"),
        (
            hf(DENSE, architectures=["Qwen3ForSequenceClassification"]),
            "only Qwen3ForCausalLM is supported",
        ),
        (hf(DENSE, layer_types=["linear_attention"] * 28), "key 'layer_types' has \"linear_att"),
        (
            hf(DENSE, rope_scaling={"type": "llama3", "factor": 8.0}),
            "key 'rope_scaling.type' is 'llama3'; only 'default' and 'yarn' are supported",
        ),
        (
            hf(DENSE, rope_scaling={**YARN, "attention_factor": 1.0}),
            "key 'rope_scaling.attention_factor' is 1; only 0.1 ln(factor) + 1 = 1.34657",
        ),
        # quantized in ways that are not supported
        *(
            (
                hf(preset, quantization_config={"quant_method": method, "bits": 8}),
                f"key 'quantization_config.quant_method' is '{method}', which is not supported",
            )
            for preset, method in [
                (DENSE, "fp8"),
                (DENSE, "awq"),
                (MOE, "gptq"),
                (MOE, "mxfp4"),
                (GPT2, "bitsandbytes"),
                (GPT_OSS, "compressed-tensors"),
                (GPT_OSS, "gguf"),
            ]
        ),
    ],
)
def test_bad_config_is_refused(data, message):
    with pytest.raises(OssiaError) as error:
        families.from_hf(data, "folder/config.json")
    assert str(error.value).startswith("folder/config.json: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


ORIGINAL = {"rope_ntk_alpha": 1, "rope_ntk_beta": 32}


@pytest.mark.parametrize(
    ("data", "message"),
    [(ORIGINAL, "missing key 'hidden_size'"), ({**ORIGINAL, "hidden_size": 0}, "at least 1")],
)
def test_bad_original_config_is_refused(data, message):
    with pytest.raises(OssiaError, match=message):
        families.from_hf(data, "original/config.json")


def test_what_is_ignored_is_listed_once_and_never_used():
    """An ignored key of any value changes nothing; a key cannot be both ignored and read."""
    for family, preset in ((gpt2, GPT2), (qwen3, DENSE), (qwen3, MOE), (gpt_oss, GPT_OSS)):
        ignored = dict.fromkeys(family.IGNORED, "anything")
        assert len(ignored) == len(family.IGNORED)
        assert set(keys.GENERIC_IGNORED) <= set(ignored)
        assert families.from_hf({**hf(preset), **ignored}, "x") == families.PRESETS[preset]
