"""Speculation as callers ask for it: the same text with it, of the packaged model."""

from __future__ import annotations

import pytest

import ossia
from ossia.api import packaged_model
from tests.scripted import write_byte_tokenizer

PROMPTS = ["for i in range(10):\n    print(i)\nfor j in range(10):\n", "import os\nimport "]
SAMPLED = {"max_tokens": 48, "temperature": 0.7, "top_p": 0.9, "seed": 4, "logprobs": 1}


@pytest.fixture(scope="module")
def expected():
    with ossia.LLM(kv_memory="64MiB") as llm:
        return llm.generate(PROMPTS, **SAMPLED), llm.generate(PROMPTS, max_tokens=48, temperature=0)


@pytest.mark.parametrize("speculate", ["ngram", "ossia-stdlib", packaged_model()])
def test_it_changes_no_text(expected, speculate):
    with ossia.LLM(kv_memory="64MiB", speculate=speculate, speculate_tokens=4) as llm:
        assert llm.generate(PROMPTS, **SAMPLED) == expected[0]
        assert llm.generate(PROMPTS, max_tokens=48, temperature=0) == expected[1]
        engine = llm.stats().engine
    assert engine is not None
    assert engine.drafted_tokens >= engine.accepted_tokens > 20
    if speculate != "ngram":
        assert engine.accepted_tokens > 0.95 * engine.drafted_tokens


def test_a_model_of_other_tokens_is_refused(tmp_path):
    write_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text((packaged_model() / "config.json").read_text())
    with pytest.raises(ossia.OssiaError, match="cannot draft for this model: its tokenizer"):
        ossia.LLM(speculate=str(tmp_path))
    with pytest.raises(ossia.OssiaError, match="no-such-draft"):
        ossia.LLM(speculate="no-such-draft")
