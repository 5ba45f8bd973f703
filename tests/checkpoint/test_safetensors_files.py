"""read_tensors: every tensor as the safetensors library reads it, none copied, and whatever is
wrong told in one line.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ossia import OssiaError
from ossia.checkpoint.files import read_tensors


def raw(path: Path, header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(encoded) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + encoded + data)
    return path.parent


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(folder: Path) -> str:
    with pytest.raises(OssiaError) as caught:
        read_tensors(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_are_those_that_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.randn(5, 3),
        "half": torch.randn(3).half(),
        "brain": torch.randn(2, 2, 2).bfloat16(),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "mask": torch.tensor([True, False]),
        "ids": torch.tensor([-1, 2**40]),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_tensors(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        torch.testing.assert_close(found[name].tensor(), tensor, rtol=0, atol=0)


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    numbers = torch.tensor([1.5, -2.0])
    data = b"\x07" + bytes(numbers.untyped_storage())
    header = {"byte": entry("U8", [1], [0, 1]), "floats": entry("F32", [2], [1, 9])}
    found = read_tensors(raw(tmp_path / "model.safetensors", header, data))
    assert found["floats"].tensor().tolist() == [1.5, -2.0]


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4)}, tmp_path / "model.safetensors")
    tensor = read_tensors(tmp_path)["x"].tensor()
    tensor += 1
    assert read_tensors(tmp_path)["x"].tensor().tolist() == [0, 0, 0, 0]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_reading_takes_file_pages_only(tmp_path: Path) -> None:
    size = 64 << 20
    save_file({"x": torch.zeros(size, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    tensor = read_tensors(tmp_path)["x"].tensor()
    anonymous, mapped = resident("Anon"), resident("File")
    tensor.amax()
    # Other threads and the system's own wishes move both a little.
    assert resident("File") - mapped >= size // 2
    assert resident("Anon") - anonymous < size // 2


def resident(kind: str) -> int:
    """Bytes of this process's memory that are pages of files ("File") or not ("Anon")."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"Rss{kind}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


X = {"x": entry()}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": entry(offsets=[0, 16])}, bytes(16), "tensor x has 16 bytes; F32 (2,) needs 8"),
        ({"x": entry(shape=[3])}, bytes(8), "tensor x has 8 bytes; F32 (3,) needs 12"),
        ({"x": entry(offsets=[8, 0])}, bytes(8), "tensor x begins at byte 8, after its end at 0"),
        ({"x": entry(offsets=[0, 2**70], shape=[2**68])}, bytes(8), "tensor x ends at byte"),
        (X, bytes(7), "is truncated, or its header is wrong: tensor x ends at byte"),
        ({**X, "y": entry(offsets=[4, 12])}, bytes(12), "tensor y overlaps the one before it"),
        ({**X, "y": entry(offsets=[0, 8])}, bytes(8), "overlaps the one before it"),
        (
            {**X, "y": entry(offsets=[12, 20])},
            bytes(20),
            "the 4 bytes before tensor y belong to no",
        ),
        (X, bytes(9), "1 bytes after the last tensor belong to none"),
        ({"x": entry("F3")}, bytes(8), "tensor x has the unknown dtype 'F3'"),
        ({"x": entry(["F32"])}, bytes(8), "tensor x has the unknown dtype ['F32']"),
        ({"x": entry(shape=[-2])}, bytes(8), "tensor x has a shape or offsets that are not counts"),
        ({"x": entry(shape=[2.0])}, bytes(8), "tensor x has a shape or offsets that are not"),
        ({"x": entry(shape=[True])}, bytes(8), "tensor x has a shape or offsets that are not"),
        ({"x": entry(shape=2)}, bytes(8), "tensor x lacks a dtype, a shape or two data_offsets"),
        ({"x": entry(offsets=[0, 4, 8])}, bytes(8), "tensor x lacks a dtype, a shape or two"),
        ({"x": {"dtype": "F32"}}, bytes(8), "tensor x lacks a dtype, a shape or two"),
        ({"x": 1}, bytes(8), "tensor x lacks a dtype, a shape or two data_offsets"),
        (b'{"x": 1, "x": 2}', b"", "header: x occurs twice"),
        (b"{not JSON", b"", "header is not valid JSON"),
        (b"\xff\xfe\x00", b"", "header is not valid JSON"),
        (b"[" * 100_000, b"", "header is not valid JSON"),
        (b"[1]", b"", "header is not a JSON object"),
    ],
)
def test_a_lying_header_is_refused(
    tmp_path: Path, header: dict[str, Any] | bytes, data: bytes, message: str
) -> None:
    told = refusal(raw(tmp_path / "model.safetensors", header, data))
    assert str(tmp_path / "model.safetensors") in told
    assert message in told


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (2**63, "a header of 9223372036854775808 bytes is absurd"),
        (99_999_999, "a header of 99999999 bytes is absurd"),
        (9_999_999, "is truncated: its header ends at byte 10000007, the file at"),
    ],
)
def test_an_absurd_header_length_is_refused(tmp_path: Path, length: int, message: str) -> None:
    told = refusal(raw(tmp_path / "model.safetensors", X, bytes(8), length))
    assert "model.safetensors" in told
    assert message in told


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert f"model.safetensors is truncated: {len(content)} bytes" in refusal(tmp_path)


def sharded(folder: Path) -> Path:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"c": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")
    write_index(
        folder,
        {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
    )
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_by_their_index_and_without_one(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"elsewhere": torch.ones(1)}, tmp_path / "adapter.safetensors")
    assert sorted(read_tensors(tmp_path)) == ["a", "b", "c"]
    (tmp_path / "model.safetensors.index.json").unlink()
    assert sorted(read_tensors(tmp_path)) == ["a", "b", "c", "elsewhere"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00001-of-00002.safetensors").unlink()
    told = refusal(tmp_path)
    assert "shard model-00001-of-00002.safetensors is missing" in told
    assert "holds 2 tensors" in told


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    shard = sharded(tmp_path) / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    assert f"{shard} is truncated, or its header is wrong: tensor c" in refusal(tmp_path)


def test_of_a_tensor_in_two_shards_the_last_counts_if_there_is_an_index(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sharded(tmp_path)
    twice = {"a": torch.zeros(2), "c": torch.ones(2)}
    save_file(twice, tmp_path / "model-00002-of-00002.safetensors")
    assert torch.equal(read_tensors(tmp_path)["a"].tensor(), torch.zeros(2))
    assert "tensor a replaces that of model-00001-of-00002.safetensors" in caplog.text
    (tmp_path / "model.safetensors.index.json").unlink()
    told = refusal(tmp_path)
    assert "model-00002-of-00002.safetensors: tensor a is also in model-00001" in told


def test_an_index_chooses_files_and_not_tensors(tmp_path: Path) -> None:
    """As in transformers; entries go stale where a model is tied or its shards are made anew."""
    one, two = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    for weight_map in ({"a": two, "b": one}, {"a": one, "gone": two}, {"c": f"./{two}", "a": one}):
        write_index(sharded(tmp_path), weight_map)
        assert sorted(read_tensors(tmp_path)) == ["a", "b", "c"]


def test_shards_may_lie_in_a_folder_within(tmp_path: Path) -> None:
    (tmp_path / "within").mkdir()
    for shard in sharded(tmp_path).glob("*.safetensors"):
        shard.rename(tmp_path / "within" / shard.name)
    names = [f"within/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    write_index(tmp_path, dict(zip("ac", names, strict=True)))
    assert sorted(read_tensors(tmp_path)) == ["a", "b", "c"]


def test_an_index_needs_no_metadata(tmp_path: Path) -> None:
    index = sharded(tmp_path) / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    mark = b"\xef\xbb\xbf"
    index.write_bytes(mark + json.dumps({"weight_map": weight_map}).encode())
    assert sorted(read_tensors(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map is missing or not an object"),
        ({"a": "../model.safetensors"}, "tensor a has no file name in this folder"),
        ({"a": 1}, "tensor a has no file name in this folder: 1"),
        ({"a": "model-00003-of-00002.safetensors"}, "shard model-00003-of-00002.safetensors is"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, weight_map: object, message: str) -> None:
    write_index(sharded(tmp_path), weight_map)
    told = refusal(tmp_path)
    assert "model.safetensors.index.json" in told
    assert message in told


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    told = refusal(tmp_path)
    assert name in told
    assert "convert them to safetensors" in told


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} holds no .safetensors file; copy the weights there"
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refusal(tmp_path)


def test_unreadable_places_are_told(tmp_path: Path) -> None:
    assert re.match(r"cannot read the folder .*absent: No such file", refusal(tmp_path / "absent"))
    (tmp_path / "model.safetensors").mkdir()
    assert f"cannot read {tmp_path / 'model.safetensors'}: Is a directory" in refusal(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_told(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").chmod(0)
    assert "model.safetensors: Permission denied" in refusal(tmp_path)
    tmp_path.chmod(0)
    assert "Permission denied" in refusal(tmp_path)
    tmp_path.chmod(0o700)
