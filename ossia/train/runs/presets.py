"""Architectures to train from scratch, by name: the families at sizes for a few CPU cores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from ossia import families
from ossia.config import (
    GELU,
    AttentionConfig,
    ExpertFormat,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    SwiGLU,
    YaRN,
    with_expert_format,
)
from ossia.errors import OssiaError
from ossia.system.files import read_json
from ossia.text.tokenizer import END_OF_TEXT
from ossia.train.corpus.vocabulary import START_OF_TEXT, control_id

_ANY_VOCABULARY = 1  # replaced by the vocabulary that the run learns


@dataclass(frozen=True)
class GptOssSizes:
    """The sizes in which gpt-oss models differ. `original_context` is the context before YaRN."""

    hidden: int
    layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    experts: int
    chosen: int
    intermediate: int
    window: int
    context: int
    original_context: int


def gpt_oss(sizes: GptOssSizes) -> ModelConfig:
    """gpt-oss-20b at other sizes, with dense experts: even layers slide, odd layers do not."""
    published = with_expert_format(families.PRESETS["gpt-oss-20b"], ExpertFormat.DENSE)
    layer, rope = published.layers[0], published.position
    assert isinstance(layer.feedforward, MoEConfig)
    assert isinstance(rope, RoPE)
    moe = replace(
        layer.feedforward,
        num_experts=sizes.experts,
        experts_per_token=sizes.chosen,
        intermediate_size=sizes.intermediate,
    )
    attention = replace(
        layer.attention,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
    )
    factor = sizes.context / sizes.original_context
    return replace(
        published,
        vocab_size=_ANY_VOCABULARY,
        hidden_size=sizes.hidden,
        context_length=sizes.context,
        layers=tuple(
            LayerConfig(replace(attention, window=None if i % 2 else sizes.window), moe)
            for i in range(sizes.layers)
        ),
        position=replace(rope, yarn=YaRN(factor, sizes.original_context, truncate=False)),
        eos_ids=(),
        pad_id=None,
    )


PRESETS: dict[str, ModelConfig] = {
    "small-gpt-oss": gpt_oss(
        GptOssSizes(
            hidden=192,
            layers=6,
            num_heads=3,
            num_kv_heads=1,
            head_dim=64,
            experts=16,
            chosen=2,
            intermediate=128,
            window=128,
            context=1024,
            original_context=512,
        )
    ),
    "small-gpt2": ModelConfig(
        vocab_size=_ANY_VOCABULARY,
        hidden_size=256,
        context_length=256,
        layers=(
            LayerConfig(AttentionConfig(4, 4, 64, bias=True), MLPConfig(1024, GELU(), bias=True)),
        )
        * 6,
        position=LearnedPositions(),
        norm=LayerNorm(),
        tied_embeddings=True,
    ),
    "small-qwen3": ModelConfig(
        vocab_size=_ANY_VOCABULARY,
        hidden_size=256,
        context_length=1024,
        layers=(LayerConfig(AttentionConfig(4, 2, 64, qk_norm=True), MLPConfig(704, SwiGLU())),)
        * 6,
        position=RoPE(theta=1e6),
        norm=RMSNorm(eps=1e-6),
        tied_embeddings=True,
    ),
}


def architecture(name: str, tokenizer: Tokenizer, ignore_unknown_keys: bool = False) -> ModelConfig:
    """A preset, or the config.json of one of the families, with the vocabulary and control ids of
    `tokenizer`.
    """
    if name.lower() in PRESETS:
        config = PRESETS[name.lower()]
    elif Path(name).is_file():
        config = families.from_hf(read_json(Path(name)), name, ignore_unknown_keys)
        # The file may describe a checkpoint with packed experts; trained experts are dense.
        config = with_expert_format(config, ExpertFormat.DENSE)
    else:
        raise OssiaError(f"--config {name}: neither a config.json nor one of {', '.join(PRESETS)}")
    return with_vocabulary(config, tokenizer)


def with_vocabulary(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The same architecture over the ids of `tokenizer`, which `vocabulary.learn` made. It ends
    texts; the end of a chat's turns is added by fine-tuning.
    """
    end = control_id(tokenizer, END_OF_TEXT)
    return replace(
        config,
        vocab_size=tokenizer.get_vocab_size(),
        bos_id=control_id(tokenizer, START_OF_TEXT),
        eos_ids=(end,),
        pad_id=end,
    )
