"""Tiny models of each family, with weights that let every part of them show."""

from __future__ import annotations

from dataclasses import replace

import torch

from ossia.config import (
    GELU,
    AttentionConfig,
    ClampedSwiGLU,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    Rounding,
    Router,
    SwiGLU,
    YaRN,
)
from ossia.model import Decoder
from ossia.model.decoder import Layer
from ossia.model.feedforward import MoE
from ossia.ops.training import Training
from ossia.train.runs.presets import GptOssSizes, gpt_oss


def gpt2_like() -> ModelConfig:
    layer = LayerConfig(AttentionConfig(3, 3, 7, bias=True), MLPConfig(29, GELU(), bias=True))
    return ModelConfig(101, 21, 90, (layer,) * 2, LearnedPositions(), LayerNorm())


def qwen3_like() -> ModelConfig:
    attention = AttentionConfig(6, 2, 10, qk_norm=True)
    layer = LayerConfig(attention, MLPConfig(37, SwiGLU()))
    return ModelConfig(103, 26, 90, (layer,) * 2, RoPE(1e6), RMSNorm())


def qwen3_moe_like() -> ModelConfig:
    moe = MoEConfig(5, 2, 18, SwiGLU(), Router.SOFTMAX_THEN_TOP_K_RENORMALIZED)
    layer = LayerConfig(AttentionConfig(6, 2, 10, qk_norm=True), moe)
    return ModelConfig(101, 26, 90, (layer,) * 2, RoPE(1e6), RMSNorm())


def gpt_oss_like() -> ModelConfig:
    moe = MoEConfig(5, 2, 22, ClampedSwiGLU(), Router.TOP_K_THEN_SOFTMAX, bias=True)
    layers = tuple(
        LayerConfig(AttentionConfig(6, 2, 10, window=window, bias=True, sinks=True), moe)
        for window in (9, None, 9, None)
    )
    position = RoPE(150_000.0, YaRN(8.0, 16, truncate=False))
    return ModelConfig(97, 30, 128, layers, position, RMSNorm(1e-5, Rounding.AFTER_WEIGHT))


def small(learned: bool = False) -> ModelConfig:
    config = gpt_oss(
        GptOssSizes(
            hidden=32,
            layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            experts=4,
            chosen=2,
            intermediate=32,
            window=5,
            context=64,
            original_context=16,
        )
    )
    config = replace(config, vocab_size=50)
    return replace(config, position=LearnedPositions()) if learned else config


def layer_of(decoder: Decoder, index: int) -> Layer:
    """That layer, which a `ModuleList` has as a module of any type."""
    layer = decoder.layers[index]
    assert isinstance(layer, Layer)
    return layer


def moe_of(decoder: Decoder, index: int) -> MoE:
    """The experts of that layer and their router."""
    feedforward = layer_of(decoder, index).feedforward
    assert isinstance(feedforward, MoE)
    return feedforward


def build(config: ModelConfig) -> Decoder:
    decoder = Decoder(config, Training())
    decoder.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # without, sinks of zero and tiny scores would hide what a mask does
        for parameter in decoder.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    return decoder
