"""Folders that one process at a time writes to, and that appear whole or not at all."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from ossia.system.claims import claim
from ossia.system.files import creating, replacing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX systems")

HOLD = """
import os, sys
from pathlib import Path
from ossia.system.claims import claim, lock
folder = Path(sys.argv[1])
kept = claim(folder) if sys.argv[2] == "claim" else lock(os.open(folder, os.O_RDONLY))
print("held", flush=True)
input()
"""


@contextmanager
def another_process(folder: Path, does: str = "claim") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), does],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_process_at_a_time_claims_a_folder(tmp_path):
    with another_process(tmp_path), pytest.raises(OssiaError, match="another process is at work"):
        claim(tmp_path)
    mine = claim(tmp_path)  # the other was killed
    assert claim(tmp_path) is mine
    mine.check(tmp_path)


def test_a_claim_ends_when_it_is_dropped(tmp_path):
    claim(tmp_path)
    with another_process(tmp_path):
        pass


def test_a_claim_goes_with_its_folder(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    mine = claim(first)
    first.rename(second)
    mine.check(second)
    with pytest.raises(OssiaError, match=f"{first} was removed or replaced"):
        mine.check(first)
    shutil.rmtree(second)
    second.mkdir()
    with pytest.raises(OssiaError, match=f"{second} was removed or replaced"):
        mine.check(second)
    other = claim(second)
    other.check(second)
    with pytest.raises(OssiaError, match=f"{second} was removed or replaced"):
        mine.check(second)


def test_a_place_that_cannot_be_claimed_is_named(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(OssiaError, match=f"cannot write to {place}"):
            claim(place)


@pytest.mark.parametrize("existed", [False, True])
def test_a_new_folder_appears_whole_or_not_at_all(tmp_path, existed):
    out = tmp_path / "out"
    if existed:
        out.mkdir()

    def fail() -> None:
        with creating(out) as new:
            (new / "a").write_text("a")
            raise OssiaError(f"{new}/model: no room")

    with pytest.raises(OssiaError, match=f"^{out}/model: no room$"):
        fail()
    assert [*tmp_path.iterdir()] == [out] * existed
    with creating(out) as new:
        (new / "a").write_text("old")
        with replacing(new) as inner:
            (inner / "a").write_text("a")
    assert (out / "a").read_text() == "a"
    assert [*tmp_path.iterdir()] == [out]
    with pytest.raises(OssiaError, match="not an empty folder"), creating(out):
        pass


def test_two_that_write_to_one_place_do_not_mix_nor_overwrite(tmp_path):
    out = tmp_path / "out"

    def write() -> None:
        with creating(out) as mine:
            (mine / "mine").touch()
            with creating(out) as other:
                (other / "other").touch()

    with pytest.raises(OssiaError, match="written by another process meanwhile"):
        write()
    assert [path.name for path in out.iterdir()] == ["other"]
    assert [*tmp_path.iterdir()] == [out]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    out = tmp_path / "out"
    left, living, foreign = (
        tmp_path / name
        for name in (".out.0123abcd.saving", ".out.76543210.saving", ".out.mine.saving")
    )
    for folder in (left, living, foreign):
        folder.mkdir()
        (folder / "model.safetensors").touch()
    out.mkdir()
    (out / ".model.0123abcd.saving").touch()  # of an atomic write of a file
    with another_process(living, "lock"), replacing(out) as new:
        (new / "a").touch()
    assert not left.exists()
    assert [*living.iterdir()]
    assert [*foreign.iterdir()]
    assert [path.name for path in out.iterdir()] == ["a"]


def test_a_process_stays_in_its_folder_while_that_is_filled(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    with creating(Path()) as new:
        (new / "a").touch()
    assert os.listdir() == ["a"]
