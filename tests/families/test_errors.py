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
        (hf(GPT2, foo=1), "unknown key 'foo'; --ignore-unknown-keys loads the model all the same"),
        (hf(DENSE, foo=1, bar=2), "unknown keys 'bar', 'foo'; --ignore-unknown-keys loads"),
        (hf(DENSE, **dict.fromkeys("abcdefg", 1)), "'a', 'b', 'c', 'd', 'e' and 2 more;"),
        (hf(DENSE, auto_map={"AutoModel": "x.y"}), "unknown key 'auto_map'"),
        (hf(DENSE, mlp_bias=True), "unknown key 'mlp_bias'"),
        (hf(MOE, shared_expert_intermediate_size=64), "key 'shared_expert_intermediate_size'"),
        (hf(GPT2, use_qk_norm=True), "unknown key 'use_qk_norm'"),
        (hf(DENSE, use_qk_norm=False), "unknown key 'use_qk_norm'"),
        (hf(DENSE, final_logit_softcapping=30.0), "unknown key 'final_logit_softcapping'"),
        (hf(DENSE, shared_expert_intermediate_size=False), "unknown key 'shared_expert"),
        (hf(DENSE, n_embd=3), "unknown key 'n_embd'"),
        (hf(GPT_OSS, rope_scaling={**YARN, "foo": 1.0}), "unknown key 'rope_scaling.foo'"),
        (
            hf(GPT_OSS, rope_scaling={**YARN, "extrapolation_factor": 2}),
            "unknown key 'rope_scaling.extrapolation_factor'",
        ),
        (
            hf(GPT_OSS, quantization_config={"quant_method": "mxfp4", "bits": 4}),
            "unknown key 'quantization_config.bits'",
        ),
        # missing
        (hf(GPT2, n_head=None), "missing key 'num_attention_heads' or 'n_head'"),
        (hf(MOE, num_experts=None), "missing key 'num_local_experts' or 'num_experts'"),
        (hf(DENSE, hidden_size=None), "missing key 'hidden_size'"),
        (hf(DENSE, rope_theta=None, rope_scaling=...), "missing key 'rope_theta'"),
        (hf(GPT_OSS, rope_scaling={"rope_type": "yarn"}), "missing key 'rope_scaling.factor'"),
        (hf(GPT_OSS, sliding_window=None), "key 'sliding_window' is missing, but some layers"),
        (
            hf(GPT_OSS, quantization_config={"bits": 4}),
            "missing key 'quantization_config.quant_method'",
        ),
        # of the wrong type or out of range
        (hf(DENSE, hidden_size="1024"), "key 'hidden_size' must be an integer, not \"1024\""),
        (hf(DENSE, hidden_size=True), "key 'hidden_size' must be an integer, not true"),
        (hf(DENSE, hidden_size=1024.0), "key 'hidden_size' must be an integer, not 1024.0"),
        (hf(DENSE, hidden_size=0), "key 'hidden_size' must be at least 1, not 0"),
        (hf(DENSE, rms_norm_eps="1e-6"), "key 'rms_norm_eps' must be a number"),
        (hf(DENSE, rms_norm_eps=float("nan")), "key 'rms_norm_eps' must be at least 0, not NaN"),
        (hf(DENSE, rope_theta=float("inf")), "key 'rope_theta' must be at least 2, not Infinity"),
        (hf(GPT2, resid_pdrop=1.5), "key 'resid_pdrop' must be at least 0 and at most 1, not 1.5"),
        (hf(DENSE, tie_word_embeddings=1), "key 'tie_word_embeddings' must be true or false"),
        (hf(DENSE, layer_types="full"), "key 'layer_types' must be a list"),
        (hf(DENSE, rope_scaling=4), "key 'rope_scaling' must be an object"),
        (hf(DENSE, eos_token_id=[1, "2"]), "key 'eos_token_id' must hold token ids"),
        (hf(DENSE, torch_dtype="float8"), "key 'torch_dtype' is \"float8\"; only float32, bfloat"),
        (hf(MOE, mlp_only_layers=["4"]), "key 'mlp_only_layers' must hold numbers of layers"),
        (hf(MOE, num_experts_per_tok=200), "key 'num_experts_per_tok' 200 exceeds 128 experts"),
        (hf(GPT_OSS, hidden_size=2881), "hidden_size to be a multiple of 32, not 2881"),
        (hf(DENSE, head_dim=127), "RoPE needs an even head_dim, not 127"),
        # contradictory
        (
            hf(GPT_OSS, layer_types=["full_attention"] * 3),
            "key 'layer_types' has 3 entries, 'num_hidden_layers' is 24",
        ),
        (hf(GPT2, n_head=7), "key 'n_head' 7 does not divide 'n_embd' 768"),
        (hf(DENSE, num_attention_heads=12), "'num_key_value_heads' 8 does not divide"),
        (hf(DENSE, head_dim=None, num_attention_heads=24), "key 'num_attention_heads' 24 does not"),
        (
            hf(DENSE, layer_types=["sliding_attention"] * 28),
            "key 'layer_types' has 'sliding_attention', but no 'sliding_window' is in use",
        ),
        # known, but not supported
        (hf(GPT2, activation_function="relu"), "key 'activation_function' is \"relu\"; only"),
        (hf(GPT2, scale_attn_weights=False), "key 'scale_attn_weights' is false; only true"),
        (hf(GPT2, scale_attn_by_inverse_layer_idx=True), "key 'scale_attn_by_inverse_layer_idx'"),
        (hf(GPT2, add_cross_attention=True), "key 'add_cross_attention' is true"),
        (hf(GPT2, pruned_heads={"0": [1]}), "key 'pruned_heads'"),
        (hf(DENSE, hidden_act="gelu"), 'key \'hidden_act\' is "gelu"; only "silu"'),
        (hf(DENSE, partial_rotary_factor=0.5), "key 'partial_rotary_factor' is 0.5"),
        (
            hf(DENSE, architectures=["Qwen3ForSequenceClassification"]),
            'unknown architectures ["Qwen3ForSequenceClassification"] (known: Qwen3ForCausalLM or',
        ),
        (hf(DENSE, layer_types=["linear_attention"] * 28), "key 'layer_types' has \"linear_att"),
        (
            hf(DENSE, rope_scaling={"type": "llama3", "factor": 8.0}),
            "key 'rope_scaling.type' is \"llama3\"; only 'default' and 'yarn' are supported",
        ),
        (
            hf(DENSE, rope_scaling={"type": "linear", "factor": 2}),
            "key 'rope_scaling.type' is \"linear\"",
        ),
        (hf(DENSE, rope_scaling={**YARN, "attention_factor": -1}), "attention_factor' must be at"),
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
