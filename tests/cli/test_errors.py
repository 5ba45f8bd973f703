"""A user's mistake is one line on stderr that begins with `error:`, exit code 2, and no output."""

import io
import json
import shutil

import pytest
import torch

from tests.scripted import write_byte_tokenizer


@pytest.fixture
def fails(ossia_command):
    """Run a command that must fail; the one line it says."""

    def run(*arguments):
        result = ossia_command(*arguments)
        *log, line = result.err.splitlines()
        assert result.code == 2
        assert result.out == ""
        assert line.startswith("error: ")
        assert not any("error" in earlier or "Traceback" in earlier for earlier in log)
        return line.removeprefix("error: ")

    return run


@pytest.mark.parametrize("command", ["generate", "chat"])
class TestModels:
    def arguments(self, command, model):
        return [command, *(["x"] if command == "generate" else []), "--model", model]

    def test_a_folder_that_does_not_exist(self, fails, command, tmp_path):
        line = fails(*self.arguments(command, tmp_path / "nowhere"))
        assert str(tmp_path / "nowhere") in line

    def test_a_folder_without_config(self, fails, command, bytes_folder):
        assert "config.json" in fails(*self.arguments(command, bytes_folder))

    def test_a_folder_without_tokenizer(self, fails, command, model_folder, tmp_path):
        copy = shutil.copytree(model_folder, tmp_path / "copy")
        (copy / "tokenizer.json").unlink()
        assert "no tokenizer" in fails(*self.arguments(command, copy))

    def test_a_broken_generation_config(self, fails, command, model_folder, tmp_path):
        copy = shutil.copytree(model_folder, tmp_path / "copy")
        (copy / "generation_config.json").write_text("{")
        line = fails(*self.arguments(command, copy))
        assert line.startswith(f"{copy / 'generation_config.json'} is not valid JSON")

    def test_an_unknown_backend(self, fails, command, model_folder):
        line = fails(*self.arguments(command, model_folder), "--backend", "abacus")
        assert "unknown backend 'abacus'" in line

    def test_an_unknown_format_of_keys_and_values(self, fails, command, model_folder):
        assert "int3" in fails(*self.arguments(command, model_folder), "--kv", "int3")

    def test_an_unknown_device(self, fails, command, model_folder):
        line = fails(*self.arguments(command, model_folder), "--device", "abacus")
        assert line.startswith("device 'abacus' cannot be used: there is no such device; give auto")


class TestPrompts:
    def test_empty(self, fails):
        assert fails("generate", "") == "the prompt is empty"

    def test_an_empty_pipe(self, fails, stdin):
        stdin("\n")
        assert fails("generate", "-") == "the prompt is empty"

    @pytest.mark.parametrize("command", ["generate", "chat"])
    def test_bytes_that_are_no_text(self, fails, script, monkeypatch, command):
        script("x")
        options = ["--model", "scripted"] if command == "chat" else []
        piped = io.TextIOWrapper(io.BytesIO(b"caf\xe9 ol\xe9\n"), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", piped)
        assert "not utf-8" in fails(command, *options)

    def test_longer_than_the_context(self, fails, model_folder):
        line = fails("generate", "x" * 64, "--model", model_folder)
        assert "64 tokens" in line
        assert "context of 64" in line


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["generate", "x", "--bogus"], "--bogus"),
            (["generate", "x", "--max-tokens", "0"], "--max-tokens"),
            (["generate", "x", "--temperature", "warm"], "--temperature"),
            (["generate", "x", "--dtype", "int3"], "int3"),
            (["chat", "--reasoning-effort", "extreme"], "extreme"),
            (["inspect"], "PATH_OR_NAME"),
            (["paint"], "paint"),
        ],
    )
    def test_what_typer_refuses(self, fails, arguments, says):
        assert says in fails(*arguments)

    @pytest.mark.parametrize("command", ["generate", "chat"])
    @pytest.mark.parametrize(
        ("option", "value"),
        [("--top-p", 2), ("--temp", -1), ("--seed", 2**63), ("--presence-penalty", 3)],
    )
    def test_sampling_is_checked_before_a_model_is_loaded(
        self, fails, monkeypatch, command, option, value
    ):
        monkeypatch.setattr(f"ossia.cli.{command}.open_llm", None)
        assert "must be at " in fails(command, "x", option, value).replace("above 0", "at least")

    @pytest.mark.parametrize(("option", "says"), [("--backend", "unknown"), ("--device", "device")])
    def test_the_machine_is_checked_before_a_model_is_looked_for(
        self, fails, monkeypatch, option, says
    ):
        monkeypatch.setattr("ossia.checkpoint.find", None)
        assert says in fails("generate", "x", "--model", "owner/name", option, "abacus")

    def test_an_effort_for_a_model_without(self, fails, script, tmp_path):
        script("x", folder=write_byte_tokenizer(tmp_path, ["<|endoftext|>"]))
        assert "no reasoning effort" in fails(
            "chat", "--model", "scripted", "--reasoning-effort", "low"
        )

    @pytest.mark.parametrize("place", ["file/talk.json", "."])
    def test_a_place_where_nothing_can_be_saved(self, fails, tmp_path, place):
        (tmp_path / "file").touch()
        assert "cannot write" in fails("chat", "--model", "scripted", "--save", tmp_path / place)


class TestInspect:
    def test_neither_preset_nor_folder(self, fails):
        assert "gpt-oss-20b" in fails("inspect", "gpt-5")

    def test_a_config_that_is_no_model(self, fails, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        assert "bert" in fails("inspect", tmp_path)


class TestBench:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--prompt", "512,many"], "--prompt"),
            (["--prompt", ""], "--prompt"),
            (["--batch", "1,0"], "--batch"),
            (["--tokens", "0"], "--tokens"),
            (["--turns", "0"], "--turns"),
            (["--threads", "0"], "--threads"),
            (["--backend", "abacus"], "unknown backend 'abacus'"),
            (["--prompt", "100000"], "100,000 tokens do not fit"),
            (["no-such-preset/at-all/here"], "no-such-preset"),
        ],
    )
    def test_what_cannot_be_measured(self, fails, arguments, says):
        assert says in fails("bench", "cpu", *arguments)

    def test_random_weights_that_memory_cannot_hold(self, fails, monkeypatch):
        monkeypatch.setattr("ossia.measure.model.available_memory", lambda: 10**9)
        assert "13.8 GB" in fails("bench", "cpu", "gpt-oss-20b")


def test_options_are_named_as_they_were_typed(fails):
    line = fails("chat", "hi", "--reasoning-effort", "huge")
    assert line == "--reasoning-effort must be one of low, medium, high, not 'huge'"
    assert "Value error" not in fails("generate", "x", "--dense", "int4")


@pytest.mark.parametrize("ask", [lambda: torch.empty(1 << 60), lambda: bytearray(1 << 60)])
def test_memory_that_runs_out_is_one_line(fails, monkeypatch, ask):
    """torch's allocator of the CPU raises a plain RuntimeError."""
    monkeypatch.setattr("ossia.cli.generate.open_llm", lambda *_: ask())
    assert fails("generate", "x").startswith("the memory ran out")


def test_a_page_that_cannot_be_written_is_told_before_the_model_reads(fails, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "page.html"
    for option in ("--out", "--npz"):
        assert f"{tmp_path / 'file'} is a file" in fails(
            "xray", "x", "--model", tmp_path / "none", option, place
        )
    assert f"{tmp_path / 'file'} is a file" in fails("compare", "none", "--html", place)
