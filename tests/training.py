"""Fixtures for training: a tiny gpt-oss, and text and chats that it learns in seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossia import checkpoint
from ossia.train.settings import FineTuneSettings, Settings
from tests.models import build, small
from tests.scripted import VOCAB_SIZE, write_byte_tokenizer

TEXT = "".join(f"{i} green bottles hanging on the wall, and if one falls\n" for i in range(300))

CONFIG = """{
 "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 1,
 "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16,
 "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
 "num_experts_per_tok": 2, "sliding_window": 8, "max_position_embeddings": 128,
 "layer_types": ["sliding_attention", "full_attention"], "rope_theta": 10000,
 "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
  "original_max_position_embeddings": 32, "truncate": false},
 "attention_dropout": 0.1
}"""


@pytest.fixture
def tiny(tmp_path: Path) -> Settings:
    """With dropout, so that resuming needs torch's random state too."""
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "config.json").write_text(CONFIG)
    return Settings(
        data=str(tmp_path / "text.txt"),
        config=str(tmp_path / "config.json"),
        vocab_size=300,
        steps=30,
        batch_size=4,
        length=32,
        learning_rate=1e-2,
        warmup=5,
        eval_every=10,
        save_every=10,
    )


def chats(file: Path, count: int, **more) -> Path:
    """Questions that a tiny model learns to answer."""
    lines = []
    for n in range(count):
        question = {"role": "user", "content": f"{n % 7}?"}
        answer = {"role": "assistant", "reasoning": f"{n % 7}.", "content": "ab" * (n % 7)}
        answer["content"] = answer["content"] or "-"
        lines.append(json.dumps({"messages": [question, answer], **more}))
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny gpt-oss with experts in MXFP4, whose tokens are bytes and control tokens."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    config = replace(small(), vocab_size=VOCAB_SIZE, context_length=512, eos_ids=(258,))
    checkpoint.save(build(config), folder, experts="mxfp4", dtype=torch.bfloat16)
    write_byte_tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 258}')
    return folder


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> FineTuneSettings:
    return FineTuneSettings(
        model=str(base),
        data=str(chats(tmp_path / "chats.jsonl", 40)),
        steps=20,
        batch_size=2,
        length=400,
        learning_rate=5e-3,
        warmup=2,
        eval_every=10,
        save_every=10,
        date="2026-01-02",
    )
