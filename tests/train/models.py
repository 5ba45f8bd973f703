"""A tiny gpt-oss with weights that let every part of it show."""

from __future__ import annotations

from dataclasses import replace

import torch

from ossia.config import LearnedPositions, ModelConfig
from ossia.model import Decoder
from ossia.ops.training import TRAINING
from ossia.train.runs.presets import gpt_oss


def small(learned: bool = False) -> ModelConfig:
    config = gpt_oss(
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
    config = replace(config, vocab_size=50)
    return replace(config, position=LearnedPositions()) if learned else config


def build(config: ModelConfig) -> Decoder:
    decoder = Decoder(config, TRAINING)
    decoder.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # without, sinks of zero and tiny scores would hide what a mask does
        for parameter in decoder.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    return decoder
