"""Every config.json is read as the architecture it describes, and written back without loss."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ossia import families
from ossia.config import (
    AttentionConfig,
    ClampedSwiGLU,
    Dropout,
    ExpertFormat,
    LayerNorm,
    MLPConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    Router,
    SwiGLU,
    YaRN,
)
from ossia.errors import OssiaError

CONFIGS = Path(__file__).parents[1] / "fixtures" / "configs"


def read(data):
    return families.from_hf(data, "config.json")


def with_layers(config, **changes):
    return replace(config, layers=tuple(replace(layer, **changes) for layer in config.layers))


def with_attention(config, **changes):
    return with_layers(config, attention=replace(config.layers[0].attention, **changes))


@pytest.mark.parametrize(
    ("file", "preset"),
    [
        ("gpt2.json", "gpt2"),
        ("qwen3-0.6b.json", "qwen3-0.6b"),
        ("gpt-oss-20b.json", "gpt-oss-20b"),
        ("gpt-oss-120b.json", "gpt-oss-120b"),
        ("gpt-oss-20b.original.json", "gpt-oss-20b"),
    ],
)
def test_published_config_is_the_preset(file, preset):
    assert read(json.loads((CONFIGS / file).read_text())) == families.PRESETS[preset]


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads", "kv_heads", "inner", "tied", "theta", "context"),
    [
        ("qwen3-1.7b", 28, 2048, 16, 8, 6144, True, 1e6, 40960),
        ("qwen3-4b", 36, 2560, 32, 8, 9728, True, 1e6, 40960),
        ("qwen3-8b", 36, 4096, 32, 8, 12288, False, 1e6, 40960),
        ("qwen3-14b", 40, 5120, 40, 8, 17408, False, 1e6, 40960),
        ("qwen3-32b", 64, 5120, 64, 8, 25600, False, 1e6, 40960),
        ("qwen3-30b-a3b", 48, 2048, 32, 4, 768, False, 1e6, 40960),
        ("qwen3-235b-a22b", 94, 4096, 64, 4, 1536, False, 1e6, 40960),
        ("qwen3-4b-2507", 36, 2560, 32, 8, 9728, True, 5e6, 262144),
        ("qwen3-30b-a3b-2507", 48, 2048, 32, 4, 768, False, 1e7, 262144),
        ("qwen3-235b-a22b-2507", 94, 4096, 64, 4, 1536, False, 5e6, 262144),
    ],
)
def test_qwen3_presets(name, layers, hidden, heads, kv_heads, inner, tied, theta, context):
    config = families.PRESETS[name]
    assert config.layers == (config.layers[0],) * layers
    assert config.layers[0].attention == AttentionConfig(heads, kv_heads, 128, qk_norm=True)
    assert config.layers[0].feedforward.intermediate_size == inner
    assert (config.hidden_size, config.tied_embeddings, config.context_length) == (
        hidden,
        tied,
        context,
    )
    assert config.position == RoPE(theta)


@pytest.mark.parametrize("name", families.PRESETS)
def test_preset_survives_the_way_to_config_json_and_back(name):
    config = families.PRESETS[name]
    written = json.loads(json.dumps(families.to_hf(config)))
    assert read(written) == config


GPT2, QWEN3 = families.PRESETS["gpt2"], families.PRESETS["qwen3-0.6b"]
QWEN3_MOE, GPT_OSS = families.PRESETS["qwen3-30b-a3b"], families.PRESETS["gpt-oss-20b"]
MOE = QWEN3_MOE.layers[0].feedforward

VARIANTS = {
    "gpt2 untied, other width": replace(
        with_layers(GPT2, feedforward=replace(GPT2.layers[0].feedforward, intermediate_size=100)),
        tied_embeddings=False,
        dropout=Dropout(0.0, 0.2, 0.3),
        norm=LayerNorm(1e-3),
        dtype="float16",
    ),
    "qwen3 with biases, attention dropout and many ends": replace(
        with_attention(QWEN3, bias=True),
        dropout=Dropout(attention=0.1),
        eos_ids=(1, 2),
        bos_id=None,
        init_std=0.5,
    ),
    "qwen3 with YaRN": replace(
        QWEN3, position=RoPE(1e6, YaRN(4.0, 32768, 16.0, 2.0)), context_length=131072
    ),
    "qwen3 sliding in some layers": replace(
        QWEN3,
        layers=(QWEN3.layers[0], *with_attention(QWEN3, window=7).layers[:2], QWEN3.layers[0]),
    ),
    "qwen3 mixture with dense layers": replace(
        QWEN3_MOE,
        layers=(
            QWEN3_MOE.layers[0],
            replace(QWEN3_MOE.layers[0], feedforward=MLPConfig(96, SwiGLU())),
            QWEN3_MOE.layers[0],
        ),
    ),
    "qwen3 mixture, sliding, not renormalised": with_attention(
        with_layers(QWEN3_MOE, feedforward=replace(MOE, router=Router.SOFTMAX_THEN_TOP_K)),
        window=64,
    ),
    "gpt-oss with dense experts, tied": replace(
        with_layers(
            GPT_OSS,
            feedforward=replace(GPT_OSS.layers[0].feedforward, format=ExpertFormat.DENSE),
        ),
        tied_embeddings=True,
    ),
    "gpt-oss without windows, YaRN or biases": replace(
        with_attention(GPT_OSS, window=None, bias=False), position=RoPE(1e4)
    ),
    "gpt-oss with other clamps": with_layers(
        GPT_OSS,
        feedforward=replace(GPT_OSS.layers[0].feedforward, activation=ClampedSwiGLU(5.0, 1.5)),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_survives_the_way_to_config_json_and_back(name):
    assert read(json.loads(json.dumps(families.to_hf(VARIANTS[name])))) == VARIANTS[name]


@pytest.mark.parametrize("name", [*VARIANTS, *families.PRESETS])
def test_transformers_reads_what_we_write_and_we_read_what_it_writes(name, tmp_path):
    """The round trip through transformers' own class, which renames keys and fills in defaults."""
    transformers = pytest.importorskip("transformers")
    config = {**VARIANTS, **families.PRESETS}[name]
    (tmp_path / "config.json").write_text(json.dumps(families.to_hf(config)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "again")
    assert read(json.loads((tmp_path / "again" / "config.json").read_text())) == config


def test_transformers_defaults_mean_the_same_to_us():
    """Keys that a config.json leaves out have the values that transformers gives them."""
    transformers = pytest.importorskip("transformers")
    qwen3 = read(transformers.Qwen3Config(head_dim=64).to_dict())
    assert (qwen3.context_length, qwen3.position) == (32768, RoPE(10000.0))
    window = {"use_sliding_window": True, "sliding_window": 9, "num_hidden_layers": 30}
    sliding = transformers.Qwen3Config(**window).to_dict()
    without_types = {key: value for key, value in sliding.items() if key != "layer_types"}
    assert read(without_types) == read(sliding)
    assert [layer.attention.window for layer in read(sliding).layers] == [None] * 28 + [9] * 2
    moe = transformers.Qwen3MoeConfig(decoder_sparse_step=2, mlp_only_layers=[3]).to_dict()
    kinds = [type(layer.feedforward) for layer in read(moe).layers]
    assert kinds[:6] == [MLPConfig, MoEConfig, MLPConfig, MLPConfig, MLPConfig, MoEConfig]
    assert read(moe).layers[0].attention.head_dim == 64  # hidden_size / num_attention_heads
    assert read(transformers.GptOssConfig().to_dict()).layers == (
        *with_layers(
            families.PRESETS["gpt-oss-120b"],
            feedforward=replace(
                families.PRESETS["gpt-oss-120b"].layers[0].feedforward, format=ExpertFormat.DENSE
            ),
        ).layers,
    )


def test_yarn_added_by_the_model_card_extends_the_context():
    """Qwen's cards add `rope_scaling` alone and leave max_position_embeddings at 40960."""
    data = families.to_hf(QWEN3)
    data["rope_scaling"] = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }
    config = read(data)
    assert config.position == RoPE(1e6, YaRN(4.0, 32768, truncate=True))
    assert config.context_length == 131072


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (with_attention(QWEN3, sinks=True), "qwen3: layers[0].attention.sinks is True"),
        (with_attention(GPT2, head_dim=32), "gpt2: layers[0].attention.head_dim is 32"),
        (replace(GPT_OSS, dropout=Dropout(residual=0.1)), "gpt_oss: dropout.residual is 0.1"),
        (replace(GPT2, position=RoPE(1e4)), "gpt2: position is RoPE"),
        (replace(GPT2, norm=RMSNorm()), "gpt2: norm is RMSNorm"),
        (
            replace(
                QWEN3,
                layers=(
                    *with_attention(QWEN3, window=7).layers[:1],
                    *with_attention(QWEN3, window=8).layers[:1],
                ),
            ),
            "qwen3: layers[1].attention.window is 8",
        ),
        (
            with_layers(GPT_OSS, feedforward=MLPConfig(64, SwiGLU())),
            "gpt_oss: layers[0].feedforward is MLPConfig, not MoEConfig",
        ),
    ],
)
def test_what_no_family_can_say_is_refused_field_by_field(config, field):
    for asked in (families.to_hf, families.layouts):
        with pytest.raises(OssiaError) as error:
            asked(config)
        assert field in str(error.value)
        assert all(f"{family}: " in str(error.value) for family in ("gpt2", "qwen3", "gpt_oss"))
