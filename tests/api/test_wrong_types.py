"""Values of wrong types given to the Python interface: each is one line that says what was wanted,
not an error from inside.
"""

import pathlib

import pytest
import torch

import ossia
from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions
from tests.scripted import scripted_llm

NAN, HUGE = float("nan"), 10**30


@pytest.fixture
def llm(bytes_folder):
    return scripted_llm(bytes_folder, [])[0]


def refused(call, *arguments, **options) -> str:
    with pytest.raises(OssiaError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) <= 1000
    return message


@pytest.mark.parametrize("model", [5, b"model", ["model"], {}, 1.5, "", "\0", "a" * 5000, "\ud800"])
def test_names_of_models(model):
    refused(ossia.LLM, model)
    refused(ossia.load_model, model)


def test_parts():
    assert "from_parts" in refused(ossia.LLM, parts=5)


@pytest.mark.parametrize("name", [5, None, [], b"gpt2", "no such preset"])
def test_names_of_configs(name):
    refused(ossia.config, name)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("threads", ["2", 0, -1, 1.5, True, 100_000, HUGE, []]),
        ("device", [5, None, "nothing", []]),
        ("dtype", [5, "int8", torch.int8, []]),
        ("load", [5, None, "lazy", []]),
        ("dense", [5, [], "int4", True]),
        ("expert_memory", [[], "much", -1, 1.5]),
    ],
)
def test_options_of_loading(name, values, model_folder):
    for value in values:
        refused(ossia.load_model, model_folder, **{name: value})
    assert LoadOptions(threads=1024).threads == 1024


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("kv", [1, [], "int4"]),
        ("kv_memory", [[], 1.5, "much", -1]),
        ("max_batch", ["x", 0, 10**9, HUGE, 2.0]),
        ("page_size", [None, 0, "x", 1.5]),
        ("prefill_chunk", ["x", 0, 1.5]),
        ("prefix_cache", ["no", 1, None]),
        ("max_queue", [0, "x", None]),
        ("speculate", ["", 5, []]),
        ("speculate_tokens", [0, 16, "x", None]),
    ],
)
def test_options_of_engines(name, values):
    for value in values:
        refused(EngineOptions, **{name: value})


@pytest.mark.parametrize(
    "prompts", [None, 5, 1.5, b"x", object(), [None], [5], [b"x"], [1.5], [["a"]], [[1.5]], [[-1]]]
)
def test_prompts(llm, prompts):
    refused(llm.generate, prompts, max_tokens=2)
    if not isinstance(prompts, list):
        refused(llm.stream_text, prompts, max_tokens=2)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_tokens", ["x", 1.5, [], -1]),
        ("prompt_logprobs", ["x", -1, 1.5, []]),
        ("prompt_logprobs_from", ["x", 0, 1.5, []]),
        ("temperature", ["hot", [], NAN, -1]),
        ("top_k", ["x", 1.5, []]),
        ("top_p", ["x", 0, 2, []]),
        ("min_p", ["x", -1]),
        ("repetition_penalty", ["x", 0]),
        ("presence_penalty", [[], 100]),
        ("frequency_penalty", [[], 100]),
        ("seed", ["x", 1.5, HUGE]),
        ("logprobs", ["x", -1, 1.5, []]),
        ("logit_bias", [5, "x", [1], {"a": 1}, {1: "x"}, {1.5: 1}, {-1: 1}]),
        ("stop", [5, [5], [None], ""]),
        ("nothing", [1]),
    ],
)
def test_values_of_sampling(llm, name, values):
    for value in values:
        refused(llm.generate, "a", **{"max_tokens": 2, name: value})


@pytest.mark.parametrize("tokens", [5, [1], None, "x", torch.zeros(1, 3), torch.zeros(3).long()])
def test_tokens_of_a_decoder(model_folder, tokens):
    model = ossia.load_model(model_folder)
    assert "tokens are an int64 tensor (batch, length), not" in refused(model, tokens)
    assert model(torch.zeros(2, 3).int()).shape[:2] == (2, 3)


@pytest.mark.parametrize("folder", [5, None, [], b"folder", "\0"])
def test_places_of_saved_models(model_folder, folder):
    assert "saved to a folder" in refused(ossia.save_model, ossia.load_model(model_folder), folder)


def test_what_is_no_model_is_not_saved(tmp_path: pathlib.Path):
    for model in (5, None, {}, torch.nn.Linear(2, 3)):
        assert "a Decoder is saved" in refused(ossia.save_model, model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
