"""Files that another process cuts short while they are mapped: one line, not a bus error."""

import os
import subprocess
import sys

import pytest
import torch

from ossia import checkpoint
from ossia.checkpoint.files import read_tensors, refuse_cut
from ossia.errors import OssiaError
from ossia.model import Decoder
from tests.models import qwen3_like

pytest.importorskip("ossia.ops._native", reason="the line is said by the native module")

READ = """
import os, sys, threading
import torch
from pathlib import Path
from ossia import checkpoint
from ossia.options import LoadOptions

file = Path(sys.argv[1]) / "model.safetensors"
decoder = checkpoint.load(sys.argv[1], LoadOptions(device="cpu", backend=sys.argv[2]))
ids = torch.tensor([[1, 2, 3]])

def read():
    with torch.inference_mode():
        decoder(ids)

read()
if sys.argv[3] == "replace":
    file.with_name("new").write_bytes(b"")
    file.with_name("new").rename(file)  # the old file goes on as long as it is mapped
else:
    os.truncate(file, int(sys.argv[3]))
if sys.argv[4] == "thread":
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
else:
    read()
print("read")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut") / "model"
    decoder = Decoder(qwen3_like())
    decoder.init_weights(torch.Generator().manual_seed(0))
    checkpoint.save(decoder, folder, dtype=torch.float32)
    assert (folder / "model.safetensors").stat().st_size > 8 * os.sysconf("SC_PAGE_SIZE")
    return folder


def run(folder, *words) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", READ, str(folder), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("backend", "length", "where"),
    [("cpu", 0, "main"), ("reference", 9000, "main"), ("cpu", 20_000, "thread")],
)
def test_reading_what_is_gone_is_one_line(folder, tmp_path, backend, length, where):
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", folder, copy], check=True)
    done = run(copy, backend, length, where)
    assert (done.returncode, done.stdout) == (2, "")
    line = f"error: {copy / 'model.safetensors'} was cut short by another process while it was in"
    assert done.stderr.splitlines()[-1].startswith(line)


def test_a_file_that_is_replaced_as_a_whole_does_no_harm(folder, tmp_path):
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", folder, copy], check=True)
    done = run(copy, "cpu", "replace", "main")
    assert (done.returncode, done.stdout) == (0, "read\n")


def test_another_bus_error_is_left_to_the_handler_before():
    code = """
import faulthandler, mmap, os, tempfile
faulthandler.enable()
from ossia.ops import _native
_native.watch(4096, 4096, "not this\\n")
with tempfile.TemporaryFile() as file:
    file.truncate(mmap.PAGESIZE)
    memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    file.truncate(0)
    memory[0]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert "Bus error" in done.stderr
    assert "not this" not in done.stderr


def test_a_file_cut_while_it_was_loaded_is_refused(folder, tmp_path):
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", folder, copy], check=True)
    stored = read_tensors(copy)
    refuse_cut(stored)
    size = (copy / "model.safetensors").stat().st_size
    os.truncate(copy / "model.safetensors", size - 1)  # its last page would be read as zeros
    with pytest.raises(OssiaError, match=r"model\.safetensors was cut short while it was read"):
        refuse_cut(stored)
