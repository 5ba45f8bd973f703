"""Fixtures for commands: a tiny gpt-oss on disk, and LLMs that follow a script."""

import io
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ossia import checkpoint
from ossia.cli.main import app, main
from ossia.model import Decoder
from tests.models import small
from tests.scripted import VOCAB_SIZE, scripted_llm, write_byte_tokenizer


@pytest.fixture(scope="session")
def bytes_folder(tmp_path_factory):
    """A folder with nothing but a tokenizer that has harmony's control tokens."""
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, bytes_folder):
    """A gpt-oss of random weights, two layers, a context of 64 tokens, a byte a token."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = replace(small(), vocab_size=VOCAB_SIZE, dtype="float32")
    decoder = Decoder(config)
    decoder.init_weights(torch.Generator().manual_seed(0))
    checkpoint.save(decoder, folder)
    shutil.copy(bytes_folder / "tokenizer.json", folder)
    return folder


@pytest.fixture
def ossia_command(capsys):
    """Run a command in this process: its exit code, stdout and stderr."""

    def run(*arguments, commands=app):
        code = main([str(argument) for argument in arguments], commands)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def script(monkeypatch, bytes_folder):
    """Have the commands load an LLM that replies with these scripts; returns its engine."""

    def install(*scripts, folder=bytes_folder, **options):
        llm, engine = scripted_llm(folder, scripts, **options)
        for module in ("ossia.cli.generate", "ossia.cli.chat", "recipes.stdlib.command"):
            monkeypatch.setattr(f"{module}.open_llm", lambda *_: llm)
        return engine

    return install


@pytest.fixture
def stdin(monkeypatch):
    """Pipe text into the command."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))
