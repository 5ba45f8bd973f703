"""`import ossia` is quick and offers the public surface; LLM, load_model and config find what they
are given.
"""

import subprocess
import sys

import pytest

import ossia
from ossia.api import packaged_model
from ossia.families import PRESETS
from ossia.options import Dtype, EngineOptions, LoadOptions


def test_importing_the_package_or_the_command_line_leaves_torch_alone():
    code = "import sys, ossia, ossia.cli.main; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "tokenizers", "transformers", "rich", "prompt_toolkit", "matplotlib"}
    assert not heavy & set(run.stdout.split())


def test_using_an_llm_leaves_the_compilers_and_plotters_alone():
    code = "import sys, ossia; ossia.LLM; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch._dynamo", "torch._inductor", "tensorboard", "matplotlib", "transformers"}
    assert not heavy & set(run.stdout.split())


@pytest.mark.parametrize("name", ossia.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ossia, name) is not None
    assert name in dir(ossia)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ossia.nonsense


def test_config_is_a_function_although_a_module_has_its_name():
    from ossia.config import ModelConfig

    assert isinstance(ossia.config("gpt-oss-20b"), ModelConfig)
    assert ossia.config("gpt2") == PRESETS["gpt2"]


def test_the_model_inside_the_package_has_a_name_everywhere():
    config = ossia.config("ossia-stdlib")
    assert config == ossia.load_model("ossia-stdlib").config
    with ossia.LLM("ossia-stdlib") as llm:
        assert llm.config == config


def test_config_of_neither_preset_nor_folder_lists_the_presets():
    with pytest.raises(ossia.OssiaError, match=r"gpt-5 is neither .* gpt2, .*gpt-oss-20b"):
        ossia.config("gpt-5")


def test_options_are_keywords_or_values_and_an_unknown_one_is_named():
    with ossia.LLM.load(
        load=LoadOptions(dtype=Dtype.float32), engine=EngineOptions(max_batch=3)
    ) as llm:
        (expected,) = llm.generate("import os\n", max_tokens=8, temperature=0)
    with ossia.LLM(dtype="float32", max_batch=3, kv_memory="64MiB") as llm:
        assert llm.generate("import os\n", max_tokens=8, temperature=0) == [expected]
    with pytest.raises(ossia.OssiaError, match=r"unknown option max_batches; .* max_batch, "):
        ossia.LLM(max_batches=3)
    with pytest.raises(ossia.OssiaError, match="unknown option kv; the options are dtype, "):
        ossia.load_model(packaged_model(), kv="int8")


PROCESSES = """
import multiprocessing, os, sys
import ossia
llm = ossia.LLM()
def answer():
    return llm.generate(["def f(x):"], max_tokens=8, temperature=0)[0].text
expected = answer()
if hasattr(os, "fork"):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(answer, [()] * 4, chunksize=1) == [expected] * 4
stream = llm.stream([{"role": "user", "content": "hi"}])
next(stream)
print(answer() == expected)
sys.exit(3)
"""


def test_forked_processes_answer_too_and_an_open_stream_leaves_the_exit_status_alone():
    run = subprocess.run(
        [sys.executable, "-c", PROCESSES], capture_output=True, text=True, timeout=600
    )
    assert (run.returncode, run.stdout, run.stderr) == (3, "True\n", "")


def test_keys_and_values_in_int8_are_asked_for_by_name_and_hardly_move_the_packaged_model():
    def first(kv):
        llm = ossia.LLM(kv=kv)
        prompt = "import os\nimport sys\n"
        (completion,) = llm.generate(prompt, max_tokens=1, temperature=0, logprobs=0)
        assert completion.logprobs is not None
        return completion.logprobs[0]

    exact, small = first(None), first("int8")
    assert small.token == exact.token
    assert 0 < abs(small.logprob - exact.logprob) < 0.1
