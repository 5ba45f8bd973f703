"""A model that is sent to a device has its files' weights, and leaves no second copy there."""

from __future__ import annotations

import os
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ossia import OssiaError
from ossia import load_model as load
from ossia.checkpoint import assemble, files
from ossia.ops import REFERENCE, Backend, mxfp4
from ossia.ops.weight import Weight
from ossia.system import upload
from tests.links import Late
from tests.tiny_checkpoints import (
    GPT2_CONFIG,
    GPT_OSS_CONFIG,
    ORIGINAL_CONFIG,
    QWEN3_MOE_CONFIG,
    deep_gpt_oss,
    gpt2_tensors,
    gpt_oss_tensors,
    original_tensors,
    qwen3_moe_tensors,
    write,
    write_shards,
)


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Late:
    """The CPU in the place of a GPU: weights are sent to it in small pieces that arrive late."""
    link = Late()
    monkeypatch.setattr(sys.modules["ossia.checkpoint.load"], "link_to", lambda _device: link)
    monkeypatch.setattr(upload.Upload.__init__, "__kwdefaults__", _SMALL)
    return link


_SMALL = {"piece": 256, "buffers": 3, "threads": 4}
FOLDERS = {
    "gpt-oss": (GPT_OSS_CONFIG, gpt_oss_tensors),
    "gpt-oss original": (ORIGINAL_CONFIG, original_tensors),
    "qwen3 moe": (QWEN3_MOE_CONFIG, qwen3_moe_tensors),
    "gpt2": (GPT2_CONFIG, gpt2_tensors),
}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, None) for family in FOLDERS]
    + [(family, "float32") for family in FOLDERS if family != "gpt-oss original"],
)
def test_every_parameter_arrives(
    tmp_path: Path, link: Late, monkeypatch: pytest.MonkeyPatch, family: str, dtype: str | None
) -> None:
    """Tensors shared by several parameters, transposed ones, parts of stacks, other dtypes."""
    config, tensors = FOLDERS[family]
    folder = write_shards(tmp_path, config, tensors())
    found = load(folder, dtype=dtype).state_dict()
    assert link.sent > len(tensors())
    monkeypatch.undo()
    expected = load(folder, dtype=dtype).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(found[name], tensor), name


class Bytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in it and still live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result.is_meta:
            storage = result.untyped_storage()
            key, size = storage.data_ptr(), storage.nbytes()
            if key and key not in self._known:
                self._known.add(key)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._forget, key, size)
        return result

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Relaid(Backend):
    """Gives stacks of experts another layout, in memory of its own, as a GPU's kernels do."""

    def place(self, name: str, weight: Weight) -> Weight:
        if isinstance(weight, mxfp4.MXFP4):
            return mxfp4.MXFP4(weight.blocks.flip(0).flip(0), weight.scales.clone())
        return super().place(name, weight)


def test_no_second_copy_is_left_on_the_device(
    tmp_path: Path, link: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model and one stack of experts, beside what is sent ahead."""
    loading = sys.modules["ossia.checkpoint.load"]
    monkeypatch.setattr(loading.ops, "select", lambda *_, **_options: Relaid())
    monkeypatch.setattr(assemble, "AHEAD", 1)  # one tensor
    config, tensors = deep_gpt_oss(16, 6)
    folder = write(tmp_path, config, tensors)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    largest = max(sizes.values())
    with Bytes() as counted:
        decoder = load(folder)
    model = sum(tensor.nbytes for tensor in decoder.state_dict().values())
    assert model == sum(sizes.values())
    buffers = _SMALL["piece"] * _SMALL["buffers"]
    stack = largest + max(size for name, size in sizes.items() if name.endswith("scales"))
    assert model <= counted.most <= model + stack + largest + buffers + 4096
    assert stack + largest < model / 4  # else it would prove nothing
    assert counted.now <= model + buffers + 4096


def test_a_file_that_is_cut_while_it_is_read(
    tmp_path: Path, link: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, GPT_OSS_CONFIG, gpt_oss_tensors())
    file = folder / "model.safetensors"

    def read(path: Path, start: int, memory: memoryview) -> None:
        os.truncate(file, 1000)
        files.read_into(path, start, memory)

    monkeypatch.setattr(assemble, "read_into", read)
    with pytest.raises(OssiaError, match=r"model\.safetensors was cut short while it was read"):
        load(folder)


def test_a_scale_that_is_nan_is_found_on_the_device(tmp_path: Path, link: Late) -> None:
    tensors = gpt_oss_tensors()
    tensors["model.layers.1.mlp.experts.gate_up_proj_scales"][0, 2, 0] = 255
    with pytest.raises(OssiaError, match=r"gate_up_proj_scales has the scale byte 255 at \[0, 2,"):
        load(write(tmp_path, GPT_OSS_CONFIG, tensors))


def test_the_memory_of_the_device_runs_out(
    tmp_path: Path, link: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> upload.Arriving:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 ...")

    monkeypatch.setattr(upload.Upload, "start", start)
    with pytest.raises(OssiaError) as caught:
        load(write(tmp_path, GPT_OSS_CONFIG, gpt_oss_tensors()))
    assert "ran out while weights were loaded" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_relaid_weights_compute_what_the_files_say(
    tmp_path: Path, link: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = sys.modules["ossia.checkpoint.load"]
    folder = write(tmp_path, GPT_OSS_CONFIG, gpt_oss_tensors())
    expected = load(folder, backend="reference", dtype="float32")(torch.tensor([[1, 5, 9]]))
    monkeypatch.setattr(loading.ops, "select", lambda *_, **_options: Relaid())
    decoder = load(folder, dtype="float32")
    assert decoder.ops is not REFERENCE
    assert torch.equal(decoder(torch.tensor([[1, 5, 9]])), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card, and torch sees none")
@pytest.mark.parametrize("family", FOLDERS)
def test_a_card_gets_what_the_files_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Through pinned buffers that are filled many times over."""
    monkeypatch.setattr(upload.Upload.__init__, "__kwdefaults__", _SMALL)
    config, tensors = FOLDERS[family]
    folder = write_shards(tmp_path, config, tensors())
    found = load(folder, device="cuda", backend="reference").state_dict()
    for name, tensor in load(folder, device="cpu", backend="reference").state_dict().items():
        assert found[name].is_cuda
        assert torch.equal(found[name].cpu(), tensor), name
