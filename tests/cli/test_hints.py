"""What users of other programs type first, and the spellings that they bring."""

import os
import subprocess
import sys

import pytest

from ossia.config import ModelConfig
from ossia.families import PRESETS
from tests.cli.chats import final


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "gpt-oss:20b"], "there is no command run; to talk with a model: ossia chat"),
        (["pull", "qwen3"], "there is no command pull; a model is downloaded when it is first"),
        (["LIST"], "there is no command LIST; downloaded models are listed"),
        (["chatt"], "No such command 'chatt'"),
    ],
)
def test_a_command_of_another_program_is_answered_with_ours(ossia_command, words, says):
    result = ossia_command(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {says}")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("name", ["gpt-oss-20b", "GPT-OSS-20B", "Qwen3-0.6B"])
def test_presets_are_found_in_any_case(ossia_command, name):
    import ossia

    assert isinstance(ossia.config(name), ModelConfig)
    assert ossia.config(name) is PRESETS[name.lower()]
    result = ossia_command("inspect", name)
    assert result.code == 0
    assert f"{name.lower()} (preset)" in result.out


@pytest.mark.parametrize(("typed", "dtype"), [("fp16", "float16"), ("BF16", "bfloat16")])
def test_precisions_have_short_names(ossia_command, model_folder, typed, dtype):
    words = ("generate", "ab", "-m", model_folder, "-n", 2, "--seed", 1, "--dtype")
    assert ossia_command(*words, typed).out == ossia_command(*words, dtype).out
    refused = ossia_command(*words, "int3")
    assert (refused.code, refused.out) == (2, "")
    assert "'int3' is not one of float32, bfloat16, float16" in refused.err


def test_the_shell_completes_models(monkeypatch, tmp_path):
    from ossia.cli.options import complete_model

    (tmp_path / "gpt-mine").mkdir()
    (tmp_path / "gpt-file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert complete_model("gpt-") == ["gpt-oss-20b", "gpt-oss-120b", "gpt-mine/"]
    assert complete_model("./gpt") == ["./gpt-mine/"]


def test_options_have_the_names_that_people_type(ossia_command, script):
    engine = script(final("a"))
    words = ("--temp", 0.5, "--effort", "high", "--repeat-penalty", 1.5, "-q")
    assert ossia_command("chat", "--model", "scripted", "--prompt", "x", *words).code == 0
    drawn = engine.requests[0].sampling
    assert (drawn.temperature, drawn.repetition_penalty) == (0.5, 1.5)


@pytest.mark.parametrize(
    ("typed", "offers"),
    [("ossia ch", ["chat"]), ("ossia chat --repet", ["--repetition-penalty"])],
)
def test_the_shell_completes_commands_and_options(typed, offers):
    words = typed.split()
    asked = {"_OSSIA_COMPLETE": "complete_bash", "COMP_WORDS": typed}
    done = subprocess.run(
        [sys.executable, "-m", "ossia"],
        env=os.environ | asked | {"COMP_CWORD": str(len(words) - 1)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == offers
