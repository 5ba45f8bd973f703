"""A model divided among processes, of which the LLM's leads."""

import subprocess
from typing import Any

import pytest

import ossia
from ossia.api import ranks
from ossia.errors import OssiaError


@pytest.fixture
def processes(monkeypatch):
    """Those that follow, as they are started."""
    started: list[subprocess.Popen[bytes]] = []
    start = ranks._start

    def record(*arguments):
        started.append(start(*arguments))
        return started[-1]

    monkeypatch.setattr(ranks, "_start", record)
    return started


def test_three_processes_write_what_one_does_and_end_with_it(processes):
    """The packaged model, which has three heads and one of keys."""
    prompts = ["Once upon a time", "def main():"]
    options: Any = {"temperature": 0, "max_tokens": 12}
    with ossia.LLM(device="cpu", dtype="float32", threads=1) as llm:
        expected = [found.text for found in llm.generate(prompts, **options)]
    with ossia.LLM(device="cpu", dtype="float32", threads=1, devices=3) as llm:
        found = [found.text for found in llm.generate(prompts, **options)]
        assert [process.poll() for process in processes] == [None, None]
    assert found == expected
    assert [process.wait(600) for process in processes] == [0, 0]


def test_a_process_that_dies_fails_the_requests_that_need_it(processes):
    with ossia.LLM(device="cpu", threads=1, devices=3) as llm:
        llm.generate("Once", max_tokens=2)
        processes[1].kill()
        processes[1].wait()
        with pytest.raises(RuntimeError):
            llm.generate("Once", max_tokens=2)
        with pytest.raises(RuntimeError, match="start ossia again"):
            llm.generate("Once", max_tokens=2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"devices": 2}, "3 heads do not divide among 2 processes"),
        ({"devices": 3, "expert_memory": "1GiB"}, "leave --expert-memory out"),
        ({"devices": 900, "device": "cuda"}, "at most 64"),
    ],
)
def test_what_cannot_be_divided_is_one_line(processes, options, problem):
    with pytest.raises(OssiaError, match=problem) as raised:
        ossia.LLM(**{"device": "cpu", "threads": 1, **options})
    assert "\n" not in str(raised.value)
    assert all(process.wait(600) in (0, 2) for process in processes)


def test_what_does_not_generate_takes_one_device():
    with pytest.raises(OssiaError, match="--devices is for generating"):
        ossia.load_model(ossia.checkpoint.packaged_model(), device="cpu", devices=3)
