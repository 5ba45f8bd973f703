"""Fixtures for every test: published checkpoint folders without weights, and golden results."""

from __future__ import annotations

import json
import logging
import lzma
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

from ossia.text import Tokenizer, load_tokenizer
from tests.text.harmony_reference import write_o200k

collect_ignore = ["clients"]  # in environments of their own: make clients
pytest_plugins = ("tests.browsing", "tests.commands", "tests.training")

# Without a card Triton interprets its kernels on the CPU, if told so before its first import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tiny models gain nothing from threads, and with several test processes they fight over the cores.
torch.set_num_threads(1)

# Hypothesis runs the same examples each time, so that anybody can repeat a failure, and looks at no
# clock. Without the last line it draws constants of the modules that tests before have imported.
settings.register_profile(
    "ossia",
    deadline=None,
    derandomize=True,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ossia")
providers._get_local_constants = lambda: providers._local_constants

FIXTURES = Path(__file__).parent / "fixtures"


def unpack(name: str, target: Path) -> Path:
    """Lay out fixtures/tokenizers/`name` in `target`, its .xz files decompressed."""
    target.mkdir(parents=True, exist_ok=True)
    for source in (FIXTURES / "tokenizers" / name).iterdir():
        if source.suffix == ".xz":
            (target / source.stem).write_bytes(lzma.decompress(source.read_bytes()))
        else:
            (target / source.name).write_bytes(source.read_bytes())
    return target


@pytest.fixture(autouse=True)
def undo_a_command() -> Iterator[None]:
    """Undo what a command set: threads (on one, sums are taken in one order), and the log's level,
    which decides what the next test finds in its log."""
    yield
    torch.set_num_threads(1)
    logging.getLogger("ossia").setLevel(logging.NOTSET)


@pytest.fixture
def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without a seed draw the same numbers each time, in the order in which they come."""
    draw = random.Random(0)
    source = SimpleNamespace(randbits=draw.getrandbits)
    monkeypatch.setattr("ossia.engine.sampler_state.secrets", source)


@pytest.fixture(scope="session")
def gpt_oss_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpt-oss-20b's tokenizer, configurations and template. Read only: copy it to change it."""
    return unpack("gpt-oss", tmp_path_factory.mktemp("gpt-oss"))


@pytest.fixture(scope="session")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-0.6B's tokenizer, configurations and chat template. Read only: copy it to change it."""
    return unpack("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 small's tokenizer and configurations. Read only: copy it to change it."""
    return unpack("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def gpt_oss_tokenizer(gpt_oss_folder: Path) -> Tokenizer:
    return load_tokenizer(gpt_oss_folder)


@pytest.fixture(scope="session")
def qwen3_tokenizer(qwen3_folder: Path) -> Tokenizer:
    return load_tokenizer(qwen3_folder)


@pytest.fixture(scope="session")
def gpt2_tokenizer(gpt2_folder: Path) -> Tokenizer:
    return load_tokenizer(gpt2_folder)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """golden(name) is the content of fixtures/golden/`name`.json."""

    def read(name: str) -> Any:
        return json.loads(lzma.decompress((FIXTURES / "golden" / f"{name}.json.xz").read_bytes()))

    return read


@pytest.fixture(scope="session")
def reference(gpt_oss_tokenizer, tmp_path_factory):
    """openai_harmony's encoding of gpt-oss: the independent reference for harmony, offline."""
    openai_harmony = pytest.importorskip("openai_harmony")
    folder = tmp_path_factory.mktemp("o200k")
    write_o200k(gpt_oss_tokenizer, folder / "o200k_base.tiktoken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        return openai_harmony.load_harmony_encoding("HarmonyGptOss")
