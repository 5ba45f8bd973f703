"""Responses on the disk: after a kill, under their bounds, and for one server at a time."""

from __future__ import annotations

import json
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ossia.errors import OssiaError

pytest.importorskip("fastapi")

from ossia.serve.responses.store import Kept, ResponseStore

# Keeps one response after the other, and names each once it is kept.
WRITER = """
import sys
from pathlib import Path
from ossia.serve.responses.store import Kept, ResponseStore
store = ResponseStore(Path(sys.argv[1]))
call = {"type": "function_call", "name": "f", "arguments": "{}" * 500}
for n in range(10**6):
    id = f"{sys.argv[2]}-{n}"
    response = {"id": id, "status": "completed", "output": [{"type": "reasoning"}, call]}
    store.put(Kept({"id": f"{id}-runs", "status": "queued"}, []), running=True)
    store.put(Kept(response, [{"role": "user", "content": id}]))
    print(id, flush=True)
"""


def kept(id: str, size: int = 0) -> Kept:
    return Kept({"id": id, "text": "x" * size}, [{"role": "user"}])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "responses.sqlite"


def killed_writer(file: Path, name: str, after: float) -> list[str]:
    """What a writer had named when it was killed, so many seconds after its first."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file), name], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after)
        process.kill()
        return [line.strip() for line in (first, *process.stdout) if line.endswith("\n")]


def test_nothing_that_was_kept_is_lost_in_a_kill(file):
    chance = random.Random(0)
    named = []
    for n in range(3):
        named += killed_writer(file, str(n), chance.random() / 4)
        store = ResponseStore(file)
        for id in named:
            found = store.get(id)
            assert found is not None
            assert found.input == [{"role": "user", "content": id}]
            assert [item["type"] for item in found.response["output"]] == [
                "reasoning",
                "function_call",
            ]
            ended = store.get(f"{id}-runs")
            assert ended is not None
            assert ended.response["status"] == "failed"
            assert "server stopped" in ended.response["error"]["message"]
        store.close()
    assert len({name.partition("-")[0] for name in named}) == 3


def test_a_later_state_takes_the_place_of_an_earlier_one(file):
    store = ResponseStore(file)
    store.put(Kept({"id": "a", "status": "queued"}, []), running=True)
    store.put(Kept({"id": "a", "status": "completed"}, [], b"events"))
    store.close()
    store = ResponseStore(file)
    assert store.get("a") == Kept({"id": "a", "status": "completed"}, [], b"events")
    assert store.size()[0] == 1


def test_the_oldest_go_first():
    store = ResponseStore(most=2)
    for n in range(3):
        store.put(kept(str(n)))
    assert [store.get(str(n)) is not None for n in range(3)] == [False, True, True]


def test_bytes_are_bounded_but_the_newest_stays(file):
    store = ResponseStore(file, most_bytes=10_000)
    for n in range(9):
        store.put(kept(str(n), size=3000))
    assert [n for n in range(9) if store.get(str(n))] == [6, 7, 8]
    store.put(kept("large", size=20_000))
    assert store.get("large") is not None
    assert store.size()[0] == 1
    for n in range(100):
        store.put(kept(str(n), size=3000))
    store.close()
    assert file.stat().st_size < 150_000


def test_each_goes_when_its_time_is_over(monkeypatch):
    store = ResponseStore(seconds=60)
    store.put(kept("old"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert store.get("old") is None
    store.put(kept("new"))
    assert store.size()[0] == 1


def test_others_cannot_read_the_file(file):
    ResponseStore(file).put(kept("a"))
    modes = [stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()]
    assert set(modes) == {0o600}


def test_a_second_server_cannot_have_the_file(file, monkeypatch):
    first = ResponseStore(file)
    monkeypatch.setattr("ossia.serve.responses.store.WAIT_SECONDS", 0.1)
    with pytest.raises(OssiaError, match="cannot be used to keep responses: database is locked"):
        ResponseStore(file)
    first.close()
    ResponseStore(file).close()


def test_a_full_disk_is_one_line_and_what_was_kept_stays(file):
    store = ResponseStore(file)
    store.put(kept("a", size=1000))
    store._database.execute("PRAGMA max_page_count = 30")
    with pytest.raises(OssiaError, match="cannot be kept: database or disk is full"):
        store.put(kept("b", size=10**6))
    assert store.get("a") is not None
    assert store.size()[0] == 1


def test_a_file_that_is_something_else_is_one_line(tmp_path: Path):
    file = tmp_path / "notes.txt"
    file.write_text(json.dumps("notes") * 1000)
    with pytest.raises(OssiaError, match=r"notes\.txt: cannot be used to keep responses"):
        ResponseStore(file)
