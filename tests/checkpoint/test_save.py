"""save: what was loaded is written, and a failure at any moment leaves the old checkpoint whole."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ossia import OssiaError
from ossia import load_model as load
from ossia.checkpoint import save
from ossia.ops import mxfp4
from ossia.ops.mxfp4 import MXFP4
from ossia.system import files
from tests.models import moe_of
from tests.tiny_checkpoints import (
    EXPERTS,
    GPT2_CONFIG,
    GPT_OSS_CONFIG,
    HIDDEN,
    INTER,
    ORIGINAL_CONFIG,
    QWEN3_MOE_CONFIG,
    gpt2_tensors,
    gpt_oss_tensors,
    original_tensors,
    qwen3_moe_tensors,
    write,
)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, msg=name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


CASES = {
    "gpt-oss": (GPT_OSS_CONFIG, gpt_oss_tensors),
    "qwen3 moe": (QWEN3_MOE_CONFIG, qwen3_moe_tensors),
}


@pytest.mark.parametrize("case", CASES)
def test_saving_what_was_loaded_writes_the_same_tensors(tmp_path: Path, case: str) -> None:
    config, tensors = CASES[case]
    decoder = load(write(tmp_path / "old", config, tensors()))
    save(decoder, tmp_path / "new")
    assert names(tmp_path / "new") == ["config.json", "model.safetensors"]
    assert_equal(load_file(tmp_path / "new" / "model.safetensors"), tensors())
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_gpt2_is_saved_with_prefix_and_without_masks_or_a_second_embedding(tmp_path: Path) -> None:
    decoder = load(write(tmp_path / "old", GPT2_CONFIG, gpt2_tensors()))
    save(decoder, tmp_path / "new")
    expected = gpt2_tensors("transformer.")
    for i in range(2):
        del expected[f"transformer.h.{i}.attn.bias"]
    assert_equal(load_file(tmp_path / "new" / "model.safetensors"), expected)


def test_the_original_layout_is_saved_in_the_hubs(tmp_path: Path) -> None:
    decoder = load(write(tmp_path / "old", ORIGINAL_CONFIG, original_tensors()))
    save(decoder, tmp_path / "new")
    assert_equal(load_file(tmp_path / "new" / "model.safetensors"), gpt_oss_tensors())


def test_shards_hold_at_most_the_limit_or_one_tensor(gpt_oss: Path, tmp_path: Path) -> None:
    limit = 5000
    save(load(gpt_oss), tmp_path / "new", max_shard_bytes=limit)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    count = len(files)
    assert count > 2
    assert files == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    merged: dict[str, Tensor] = {}
    for file in files:
        shard = load_file(tmp_path / "new" / file)
        assert all(index["weight_map"][name] == file for name in shard)
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= limit
        merged |= shard
    assert_equal(merged, gpt_oss_tensors())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.values())
    assert_equal(load(tmp_path / "new").state_dict(), load(gpt_oss).state_dict())
    with pytest.raises(OssiaError, match="max_shard_bytes must be at least 1, not 0"):
        save(load(gpt_oss), tmp_path / "none", max_shard_bytes=0)


def test_experts_are_unpacked_and_quantized_as_asked(gpt_oss: Path, tmp_path: Path) -> None:
    packed = load(gpt_oss)
    save(packed, tmp_path / "dense", experts="dense", max_shard_bytes=9000)
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    dense = load(tmp_path / "dense")
    gate_up, blocks = moe_of(dense, 1).gate_up.weight, moe_of(packed, 1).gate_up.value
    assert gate_up.shape == (EXPERTS, 2 * INTER, HIDDEN)
    assert isinstance(blocks, MXFP4)
    assert torch.equal(gate_up, mxfp4.unpack(blocks))

    save(dense, tmp_path / "packed", experts="mxfp4")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    again = load(tmp_path / "packed")
    found, wide = moe_of(again, 0), moe_of(dense, 0)
    for stack, original in ((found.gate_up, wide.gate_up), (found.down, wide.down)):
        matrices, weight = stack.value, original.weight
        assert isinstance(matrices, MXFP4)
        expected = mxfp4.quantize(weight)
        assert torch.equal(matrices.blocks, expected.blocks)
        assert torch.equal(matrices.scales, expected.scales)
        assert torch.equal(mxfp4.unpack(matrices), weight)  # all values are of the format


def test_what_experts_cannot_become_is_told(gpt_oss: Path, tmp_path: Path) -> None:
    decoder = load(gpt_oss)
    with pytest.raises(OssiaError, match="experts must be mxfp4, dense or None, not 'int4'"):
        save(decoder, tmp_path / "new", experts="int4")
    gpt2 = load(write(tmp_path / "gpt2", GPT2_CONFIG, gpt2_tensors()))
    with pytest.raises(OssiaError, match="no experts to save as mxfp4"):
        save(gpt2, tmp_path / "new", experts="mxfp4")
    qwen3 = load(write(tmp_path / "qwen3", QWEN3_MOE_CONFIG, qwen3_moe_tensors()))
    with pytest.raises(OssiaError, match="multiple of 32, not 12"):
        save(qwen3, tmp_path / "new", experts="mxfp4")
    save(decoder, tmp_path / "dense", experts="dense")
    dense = load(tmp_path / "dense")
    moe_of(dense, 1).down.weight[2, 0, 0] = torch.inf
    with pytest.raises(OssiaError, match=r"expert 2 of layers\.1\.feedforward\.down\.weight"):
        save(dense, tmp_path / "new", experts="mxfp4")
    assert names(tmp_path) == ["dense", "gpt-oss", "gpt2", "qwen3"]


def test_the_dtype_saved_is_the_weights_own(tmp_path: Path) -> None:
    decoder = load(write(tmp_path / "old", GPT2_CONFIG, gpt2_tensors()), dtype="bfloat16")
    decoder.norm.float()  # as one who trains norms in float32 might
    save(decoder, tmp_path / "new")
    saved = load_file(tmp_path / "new" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert_equal(load(tmp_path / "new").float().state_dict(), decoder.float().state_dict())


def test_a_decoder_that_is_not_its_config_is_refused(gpt_oss: Path, tmp_path: Path) -> None:
    decoder = load(gpt_oss)
    decoder.norm.weight = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    with pytest.raises(OssiaError, match=r"norm\.weight has the shape \(3,\), its config says"):
        save(decoder, tmp_path / "new")
    decoder.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(OssiaError, match="not those its config describes: extra"):
        save(decoder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_saving_onto_the_folder_it_was_loaded_from(gpt_oss: Path) -> None:
    (gpt_oss / "tokenizer.json").write_text("theirs")
    (gpt_oss / "notes").mkdir()
    (gpt_oss / "notes" / "log.txt").write_text("kept")
    decoder = load(gpt_oss)
    save(decoder, gpt_oss, max_shard_bytes=20_000)
    assert "model.safetensors" not in names(gpt_oss)
    assert_equal(load(gpt_oss).state_dict(), decoder.state_dict())
    save(decoder, gpt_oss)
    assert names(gpt_oss) == ["config.json", "model.safetensors", "notes", "tokenizer.json"]
    assert (gpt_oss / "tokenizer.json").read_text() == "theirs"
    assert (gpt_oss / "notes" / "log.txt").read_text() == "kept"
    assert_equal(load(gpt_oss).state_dict(), decoder.state_dict())
    assert names(gpt_oss.parent) == ["gpt-oss"]


def test_extra_files_come_along_and_replace_older_ones(gpt_oss: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("new")
    (gpt_oss / "tokenizer.json").write_text("old")
    save(load(gpt_oss), gpt_oss, extra_files=[tokenizer])
    assert (gpt_oss / "tokenizer.json").read_text() == "new"
    with pytest.raises(OssiaError, match=r"cannot save to .*: No such file"):
        save(load(gpt_oss), gpt_oss, extra_files=[tmp_path / "absent.json"])
    assert names(tmp_path) == ["gpt-oss", "tokenizer.json"]


def test_a_link_and_the_working_folder_stay_what_they_are(
    gpt_oss: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(gpt_oss)
    monkeypatch.chdir(gpt_oss)
    save(load(link), link)
    save(load("."), ".")
    assert link.is_symlink()
    assert sorted(os.listdir()) == ["config.json", "model.safetensors"]
    assert names(tmp_path) == ["gpt-oss", "link"]


def test_without_an_atomic_exchange_the_old_folder_steps_aside(
    gpt_oss: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    (gpt_oss / "tokenizer.json").write_text("kept")
    save(load(gpt_oss), gpt_oss)
    assert names(gpt_oss) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert names(gpt_oss.parent) == ["gpt-oss"]

    before, rename = contents(gpt_oss), Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".saving"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OssiaError, match=r"cannot save to .*gpt-oss: Input/output error"):
        save(load(gpt_oss), gpt_oss)
    assert contents(gpt_oss) == before
    assert names(gpt_oss.parent) == ["gpt-oss"]


@pytest.fixture
def little_space() -> Iterator[None]:
    """Files may grow to 40,000 bytes only, which the system reports as it does a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("little_space")
def test_a_full_disk_leaves_nothing_half_written(gpt_oss: Path) -> None:
    decoder, before = load(gpt_oss), contents(gpt_oss)
    for folder in (gpt_oss, gpt_oss.parent / "new"):
        with pytest.raises(OssiaError, match=f"cannot save to {folder}: File too large"):
            save(decoder, folder, experts="dense")
    assert contents(gpt_oss) == before
    assert names(gpt_oss.parent) == ["gpt-oss"]


def test_an_interrupt_leaves_the_old_checkpoint_and_no_rest(
    gpt_oss: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, before = load(gpt_oss), contents(gpt_oss)

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(decoder, gpt_oss)
    assert contents(gpt_oss) == before
    assert names(gpt_oss.parent) == ["gpt-oss"]


CRASHES = """
import os, shutil, sys, torch
from pathlib import Path
from ossia import load_model as load
from ossia.checkpoint import save

torch.set_num_threads(1)
folder = Path(sys.argv[1])
decoder = load(folder)
names = "fsync", "link", "rename", "mkdir", "unlink", "rmdir"
calls = {name: getattr(os, name) for name in names}


def contents():
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def crash_at(step):
    count = 0

    def wrap(call):
        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)  # no finally, no exit handler: the process is gone
            return call(*args, **kwargs)

        return counted

    for name, call in calls.items():
        setattr(os, name, wrap(call))


old, states = contents(), []
for step in range(1, 100):
    if (child := os.fork()) == 0:
        crash_at(step)
        save(decoder, folder, max_shard_bytes=20_000)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    states.append(contents())
    for left in folder.parent.glob(".*.saving"):  # which the next save would remove at other steps
        shutil.rmtree(left)
    if code == 0:
        break
    assert code == 9
    if states[-1] != old:  # the new one has taken its place: go on from the old
        save(decoder, folder)
        assert contents() == old
new = states[-1]
assert set(new) > {"config.json", "tokenizer.json", "model.safetensors.index.json"}
assert all(state in (old, new) for state in states)
print(sum(state == old for state in states), sum(state == new for state in states))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders in one step")
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_checkpoint_whole(gpt_oss: Path) -> None:
    (gpt_oss / "tokenizer.json").write_text("kept")
    save(load(gpt_oss), gpt_oss)
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(gpt_oss)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    old, new = map(int, done.stdout.split())
    assert old > 5
    assert new > 2


def test_places_that_cannot_be_written_are_told(gpt_oss: Path, tmp_path: Path) -> None:
    decoder = load(gpt_oss)
    file = tmp_path / "file"
    file.write_text("a file")
    with pytest.raises(OssiaError, match="file is a file; give a folder"):
        save(decoder, file)
    with pytest.raises(OssiaError, match="file is a file; give a folder"):
        save(decoder, file / "new")
    with pytest.raises(OssiaError, match="is a mount point and cannot be replaced"):
        save(decoder, "/")
    assert file.read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(gpt_oss: Path, tmp_path: Path) -> None:
    decoder = load(gpt_oss)
    tmp_path.chmod(0o500)
    with pytest.raises(OssiaError, match=r"cannot save to .*new: Permission denied"):
        save(decoder, tmp_path / "new")
    tmp_path.chmod(0o700)


def test_the_text_files_of_a_loaded_checkpoint_are_copied(tmp_path: Path) -> None:
    write(tmp_path / "old", GPT2_CONFIG, gpt2_tensors())
    for name in ("tokenizer.json", "chat_template.jinja", "notes.txt"):
        (tmp_path / "old" / name).write_text(f"old {name}")
    decoder = load(tmp_path / "old")
    save(decoder, tmp_path / "new")
    saved = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert names(tmp_path / "new") == saved
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "old tokenizer.json"
    (tmp_path / "tokenizer.json").write_text("given")
    save(decoder, tmp_path / "other", extra_files=[tmp_path / "tokenizer.json"])
    assert (tmp_path / "other" / "tokenizer.json").read_text() == "given"
    (tmp_path / "old" / "tokenizer.json").unlink()
    save(decoder, tmp_path / "later")
    assert "tokenizer.json" not in names(tmp_path / "later")
