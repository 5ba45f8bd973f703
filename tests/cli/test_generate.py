"""`ossia generate`: text to stdout as it is made, everything else to stderr."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from ossia import checkpoint
from ossia.cli.main import main


def test_only_the_text_goes_to_stdout(ossia_command, script):
    script("and they lived.")
    result = ossia_command("generate", "Once")
    assert (result.code, result.out) == (0, "and they lived.\n")
    assert "prompt 4 tokens" in result.err
    assert "reply 15 tokens" in result.err
    assert "tokens/s" in result.err


def test_text_comes_piece_by_piece_and_never_half_a_character(script, monkeypatch):
    pieces = []
    monkeypatch.setattr("sys.stdout.write", pieces.append)
    script("né 🙂")  # each byte is a token
    assert main(["generate", "x"]) == 0
    assert [piece for piece in pieces if piece.strip()] == ["n", "é", "🙂"]


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_a_piped_prompt_loses_its_last_newline_only(ossia_command, script, stdin, arguments):
    engine = script("x")
    stdin("a\nb\n")
    assert ossia_command("generate", *arguments).code == 0
    assert len(engine.requests[0].prompt) == 3


def test_options_reach_the_sampler(ossia_command, script):
    engine = script("ab STOP", temperature=0.3, top_k=7)
    result = ossia_command(
        "generate", "x", "--temperature", 0.5, "--top-p", 0.9, "--min-p", 0.1, "--seed", 3,
        "--stop", "no", "--stop", " ST", "--max-tokens", 50,
    )  # fmt: skip
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 7, 0.9)
    assert (sampling.min_p, sampling.seed, sampling.max_tokens) == (0.1, 3, 50)
    assert result.out == "ab\n"


def test_the_model_inside_the_package_is_said_to_continue_nothing(ossia_command):
    result = ossia_command("generate", "Once upon a time", "--max-tokens", "1")
    assert "--model openai-community/gpt2" in result.err
    assert ossia_command("generate", "Once", "--max-tokens", "1", "--quiet").err == ""


def test_json_is_one_object(ossia_command, script):
    script("né")
    result = ossia_command("generate", "x", "--json")
    record = json.loads(result.out)
    assert record["text"] == "né"
    assert record["finish_reason"] == "length"
    assert (record["prompt_tokens"], record["completion_tokens"]) == (1, 3)
    assert len(record["token_ids"]) == 3
    assert record["decode_tokens_per_second"] > 0


def test_a_checkpoint_generates_the_same_text_for_the_same_seed(ossia_command, model_folder):
    texts = {
        ossia_command("generate", "ab", "-m", model_folder, "-n", 8, "--seed", seed).out
        for seed in (1, 1, 2)
    }
    assert len(texts) == 2


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "ossia", *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that runs the tests in the background ignores interrupts, and so would we.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_a_reader_that_leaves_early_meets_silence(model_folder):
    process = start("generate", "ab", "-m", model_folder, "--ignore-eos")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.wait(timeout=600)
    assert "Traceback" not in errors
    assert "Error" not in errors


def test_ctrl_c_ends_with_130_and_no_traceback(model_folder):
    process = start("generate", "-", "-m", model_folder)  # waits for its prompt
    while process.poll() is None and not _reads_stdin(process.pid):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def _reads_stdin(pid):
    if not os.path.exists(f"/proc/{pid}/syscall"):
        pytest.skip("needs /proc to see that the program waits")
    with open(f"/proc/{pid}/syscall") as file:
        return file.read().startswith("0 0x0 ")


def test_dense_weights_become_int8_where_asked_for(ossia_command, model_folder):
    result = ossia_command(
        "generate", "abc", "--model", model_folder, "--dense", "int8", "--max-tokens", 3
    )
    assert result.code == 0
    assert "dense weights: int8" in result.err


def test_threads_and_the_way_to_load_reach_the_model(ossia_command):
    before = torch.get_num_threads()
    try:
        options = ("--max-tokens", 2, "--seed", 1, "--backend", "reference")
        mapped = ossia_command("generate", "def ", *options)
        copied = ossia_command("generate", "def ", *options, "--threads", 2, "--load", "copy")
        assert (copied.code, copied.out) == (0, mapped.out)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("arguments", [("--threads", 0), ("--load", "move")])
def test_no_threads_and_another_way_to_load_are_refused(ossia_command, arguments):
    result = ossia_command("generate", "x", *arguments)
    assert result.code == 2
    assert arguments[0] in result.err


def test_experts_on_disk_give_the_same_text_and_are_counted(ossia_command, model_folder, tmp_path):
    checkpoint.save(checkpoint.load(model_folder), tmp_path, experts="mxfp4")
    shutil.copy(model_folder / "tokenizer.json", tmp_path)
    arguments = ("generate", "ab", "-m", tmp_path, "-n", 8, "--seed", 1)
    whole = ossia_command(*arguments)
    parts = ossia_command(*arguments, "--expert-memory", "7kB")
    assert parts.out == whole.out
    assert "4 of 8 held" in parts.err
    assert "were in memory when needed" in parts.err
    assert "experts" not in whole.err
    record = json.loads(ossia_command(*arguments, "--expert-memory", "7kB", "--json").out)
    assert 0 < record["experts"]["hits"] < record["experts"]["needed"]
    assert record["experts"]["bytes_read"] > 0
    assert "experts" not in json.loads(ossia_command(*arguments, "--json").out)
    bad = ossia_command(*arguments, "--expert-memory", "some")
    assert (bad.code, bad.out) == (2, "")
    assert bad.err.splitlines()[-1].startswith(
        "error: --expert-memory: 'some' is no size; write 12GiB"
    )
