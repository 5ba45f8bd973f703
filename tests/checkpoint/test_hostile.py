"""Hostile files are refused soon, in little memory and in one short line."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia import load_model
from ossia.errors import OssiaError
from tests.tiny_checkpoints import (
    GPT2_CONFIG,
    GPT_OSS_CONFIG,
    QWEN3_MOE_CONFIG,
    gpt2_tensors,
    gpt_oss_tensors,
    qwen3_moe_tensors,
    write,
)

MOST_BYTES = 500 << 20  # beyond the files' own size
MOST_SECONDS = 300  # a hang; on an idle machine all take less than five

QWEN3_CONFIG = {
    **{k: v for k, v in QWEN3_MOE_CONFIG.items() if not re.search("moe|expert|topk", k)},
    "model_type": "qwen3",
}
CONFIGS = {
    "gpt2": (GPT2_CONFIG, gpt2_tensors),
    "qwen3": (QWEN3_CONFIG, qwen3_moe_tensors),
    "qwen3_moe": (QWEN3_MOE_CONFIG, qwen3_moe_tensors),
    "gpt_oss": (GPT_OSS_CONFIG, gpt_oss_tensors),
}


def refusal(folder: Path) -> tuple[str, int]:
    """The message for a folder, and the bytes it took, in a process of its own."""
    with tempfile.TemporaryFile() as result:
        if not (child := os.fork()):
            signal.alarm(MOST_SECONDS)
            torch.set_num_threads(1)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                load_model(folder, device="cpu", backend="reference")
                message = "loads"
            except OssiaError as error:
                message = str(error)
            except BaseException as error:
                message = f"not an OssiaError: {error!r:.200}"
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(result.fileno(), json.dumps([message, used << 10]).encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"it took more than {MOST_SECONDS} s (status {status})"
        result.seek(0)
        return tuple(json.loads(result.read()))


def check(folder: Path, *words: str) -> None:
    message, used = refusal(folder)
    sizes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    assert all(word in message for word in words), message
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(folder)), message
    assert used < sizes + MOST_BYTES


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("qwen3", {"num_hidden_layers": 10_000}, ("'num_hidden_layers' must be at most",)),
        ("gpt2", {"n_layer": 4000}, ("tensors do not fit config.json", "missing")),
        ("gpt_oss", {"num_hidden_layers": 4000, "layer_types": None}, ("missing",)),
        (
            "qwen3_moe",
            {"num_hidden_layers": 4000, "num_experts": 10_000},
            ("'num_experts'", "40,000,000 in all"),
        ),
        ("qwen3_moe", {"num_experts": 10_000}, ("tensors do not fit config.json",)),
        ("gpt_oss", {"num_local_experts": 10_000}, ("has the shape", "10000")),
        ("gpt2", {"n_positions": 2**24}, ("wpe.weight", "has the shape")),
        ("gpt2", {"n_positions": 2**27}, ("must be at most 16777216",)),
        ("qwen3", {"max_position_embeddings": 2**27}, ("must be at most 16777216",)),
        (
            "qwen3",
            {"rope_scaling": {"type": "yarn", "factor": 1e6}},
            ("'rope_scaling.factor' makes a context of 6.4e+07 tokens",),
        ),
        ("gpt_oss", {"vocab_size": 2**31 - 1}, ("has the shape",)),
        ("qwen3", {"hidden_size": 2**31 - 1, "head_dim": 2**31 - 2}, ("config.json",)),
        ("qwen3", {"num_hidden_layers": int("9" * 4000)}, ("must be at most",)),
        ("qwen3", {"rope_theta": int("9" * 4000)}, ("'rope_theta'",)),
        ("qwen3", {"x" * 1_000_000: 1}, ("unknown key",)),
        ("qwen3", dict.fromkeys(map(str, range(100_000)), 1), ("unknown keys", "more")),
        ("qwen3", {"model_type": "x" * 1_000_000}, ("'model_type'",)),
        ("qwen3", {"architectures": ["x"] * 100_000}, ("unknown architectures",)),
        ("qwen3", {"layer_types": ["x"] * 1_000_000}, ("'layer_types'",)),
        ("qwen3", {"hidden_act": {"a": ["x"] * 100_000}}, ("'hidden_act'",)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hostile_config_is_refused(
    family: str, change: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    config, tensors = CONFIGS[family]
    write(tmp_path, {**config, **change}, tensors())
    check(tmp_path, *words)


def text(content: str) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        file.write_text(content)

    return make


def sparse(size: int) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        with file.open("wb") as opened:
            opened.truncate(size)

    return make


def link(target: str) -> Callable[[Path], None]:
    return lambda file: file.symlink_to(target)


NO_JSON: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a pipe": (os.mkfifo, ("is not a file but a pipe",)),
    "a device": (link("/dev/zero"), ("is not a file but a pipe",)),
    "a folder": (Path.mkdir, ("s a directory",)),
    "100 MB": (sparse(100_000_000), ("100,000,000 bytes", "at most")),
    "one of 100,000 names twice": (
        text("{" + ",".join(f'"{n % 99_999}":1' for n in range(100_000)) + "}"),
        ("occurs twice",),
    ),
    "a long name twice": (text('{{"{0}":1,"{0}":2}}'.format("x" * 1_000_000)), ("occurs twice",)),
    "a number of 5,000 digits": (text(f'{{"a":{"9" * 5000}}}'), ("is not valid JSON",)),
    "nested 100,000 deep": (text('{"a":' + "[" * 100_000), ("is not valid JSON",)),
    "millions of objects": (text(f'{{"a":[{"{}," * 5_000_000}0]}}'), ()),
}


@pytest.mark.parametrize("case", NO_JSON)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_hostile_json_is_refused(case: str, name: str, tmp_path: Path) -> None:
    make, words = NO_JSON[case]
    write(tmp_path, GPT2_CONFIG, gpt2_tensors())
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    index = {"weight_map": {"wte.weight": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / name).unlink()
    make(tmp_path / name)
    check(tmp_path, *words)


def header(content: str, data: int = 0) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        encoded = content.encode()
        file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(data))

    return make


def entry(**change: Any) -> str:
    return json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **change})


HEADERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a pipe": (os.mkfifo, ("is not a file but a pipe",)),
    "a device": (link("/dev/zero"), ("is not a file but a pipe",)),
    "100 MB": (header(" " * 100_000_000), ("is absurd",)),
    "one of 100,000 names twice": (
        header("{" + ",".join(f'"{n % 99_999}":{entry()}' for n in range(100_000)) + "}", 4),
        ("occurs twice",),
    ),
    "100,000 unknown names": (
        header(
            "{"
            + ",".join(f'"{n}":{entry(shape=[0], data_offsets=[0, 0])}' for n in range(100_000))
            + "}"
        ),
        ("missing", "100000 unknown"),
    ),
    "a long name": (header(f'{{"{"x" * 1_000_000}":{entry(dtype="X")}}}'), ("unknown dtype",)),
    "a long dtype": (header(f'{{"a":{entry(dtype="x" * 1_000_000)}}}'), ("unknown dtype",)),
    "a million dimensions": (
        header(f'{{"a":{entry(shape=[1] * 1_000_000)}}}', 4),
        ("1000000 dimensions",),
    ),
    "dimensions of 4,000 digits": (
        header(f'{{"a":{entry(shape=[int("9" * 4000)] * 1000)}}}', 4),
        ("not counts",),
    ),
    "offsets of 4,000 digits": (
        header(f'{{"a":{entry(data_offsets=[0, int("9" * 4000)])}}}', 4),
        ("not counts",),
    ),
    "a size of 2^120 elements": (
        header(f'{{"a":{entry(shape=[2**60, 2**60])}}}', 4),
        ("has 4 bytes",),
    ),
    "a number of 5,000 digits": (header(f'{{"a":{"9" * 5000}}}'), ("is not valid JSON",)),
    "millions of objects": (header(f'{{"a":[{"{}," * 5_000_000}0]}}'), ("lacks a dtype",)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_hostile_header_is_refused(case: str, tmp_path: Path) -> None:
    make, words = HEADERS[case]
    (tmp_path / "config.json").write_text(json.dumps(GPT2_CONFIG))
    make(tmp_path / "model.safetensors")
    check(tmp_path, *words)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({f"x{n}": f"{n}.safetensors" for n in range(100_000)}, ("shard", "is missing")),
        ({"x": "y" * 1_000_000}, ("shard", "is missing")),
        ({"x" * 1_000_000: 5}, ("has no file name",)),
        ({"x": "../elsewhere.safetensors"}, ("has no file name in this folder",)),
        ({"x": "/etc/passwd"}, ("has no file name in this folder",)),
        ({"x": "a\0b"}, ("has no file name in this folder",)),
        ({"x": "a/../../b"}, ("has no file name in this folder",)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hostile_index_is_refused(
    weight_map: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2_CONFIG))
    (tmp_path / "other.safetensors").touch()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    check(tmp_path, *words)
