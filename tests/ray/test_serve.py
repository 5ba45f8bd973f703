"""`ossia serve --replicas` as a command, over the model inside the package: for `make replicas`,
which installs Ray.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.replicas import hits, kill_replicas, measure_routing, processes, started, total
from bench.serve.process import Server
from tests.scripted import eventually

openai = pytest.importorskip("openai")
pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with started(2, "--kv-memory", "64MiB") as server:
        yield server


@pytest.fixture
def client(server) -> Any:
    url = f"http://127.0.0.1:{server.port}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300)


def test_both_replicas_answer(server, client):
    for _ in range(4):
        answer = client.chat.completions.create(
            model=server.model, messages=QUESTION, temperature=0, max_tokens=100
        )
        assert "4" in answer.choices[0].message.content
    figures = server.figures()
    for n in "01":
        assert figures[f'ossia_requests_total{{outcome="stop",replica="{n}"}}'] > 0
        assert figures[f'ossia_replica_up{{replica="{n}"}}'] == 1


def test_a_conversation_finds_its_prefix(server):
    figures = measure_routing(server, conversations=3, turns=3)
    # Of three turns, the first one's long text is new, and the other two find it.
    assert figures["hit_rate"] > 0.5
    assert hits(server)[0] > 0


def test_responses_go_on_at_any_replica(server, client):
    create, retrieve = client.responses.create, client.responses.retrieve
    first = create(model=server.model, input="What is 3 + 4?", max_output_tokens=100)
    for _ in range(3):
        more = create(
            model=server.model, input="And 1 more?", previous_response_id=first.id, temperature=0
        )
        assert more.status in ("completed", "incomplete")
        assert len(client.responses.input_items.list(more.id).data) >= 2
    running = create(model=server.model, input="Count to a thousand.", background=True)
    assert retrieve(running.id).status in ("queued", "in_progress", "completed", "incomplete")
    client.responses.cancel(running.id)
    assert retrieve(running.id).status in ("cancelled", "completed", "incomplete")


def test_who_hangs_up_has_the_request_ended_in_its_replica(server, client):
    stream = client.completions.create(
        model=server.model,
        prompt="def",
        stream=True,
        max_tokens=1900,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    assert eventually(lambda: total(server.figures(), "ossia_running") == 0)
    ended = [key for key in server.figures() if 'outcome="cancelled"' in key]
    assert total({key: server.figures()[key] for key in ended}, "ossia_requests_total") >= 1


def test_no_request_is_lost_that_had_not_begun_when_a_replica_is_killed(server):
    killed = kill_replicas(server, rounds=2, clients=6)
    assert killed.lost == []
    assert killed.outcomes["answered"] > 0
    figures = server.figures()
    assert total(figures, "ossia_replica_deaths_total") >= 2
    assert total(figures, "ossia_replica_up") == 2
    assert total(figures, "ossia_broken_streams_total") == killed.outcomes["broken"]


CODE_IN_A_REPLICA = """
import sys

import ray

from ossia.serve.options import ServeOptions
from ossia.tools.chosen import ChosenTools
from ossia.tools.python import run

ray.init(num_cpus=1, include_dashboard=False, object_store_memory=2**27, _temp_dir=sys.argv[1])


@ray.remote
def outputs(names):
    ChosenTools(names).toolsets(len)  # refused where code cannot be locked in
    return [run(code).output for code in ("print(6 * 7)", "import socket; socket.socket()")]


answer, refused = ray.get(outputs.remote(ServeOptions(tool=("python",)).tool))
assert answer == "42\\n", answer
assert "PermissionError" in refused, refused
"""


def test_code_runs_locked_in_in_a_process_of_ray():
    """What --tool python does in a replica, whose model would not write code."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets have a path in it
    try:
        run = [sys.executable, "-c", CODE_IN_A_REPLICA, str(folder)]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ossia", "serve", "--port", "0", "--json", *arguments]


def test_a_model_that_there_is_not_is_one_line_and_nothing_is_left():
    done = subprocess.run(
        command("--replicas", "2", "missing/model"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "missing/model" in line


@contextmanager
def head(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a Ray of two processors, which ends with the block, and its first process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = "from ray.scripts.scripts import main; main()"
    options = ["--head", "--block", "--port", str(port), "--num-cpus", "2"]
    options += ["--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
    options += ["--object-store-memory", str(2**27), "--temp-dir", str(folder)]
    with subprocess.Popen(
        [sys.executable, "-c", line, "start", *options],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as ray:
        try:
            assert ray.stdout is not None
            assert any("Ray runtime started" in line for line in ray.stdout)
            yield f"127.0.0.1:{port}", ray.pid
        finally:
            os.killpg(ray.pid, signal.SIGTERM)
            ray.wait(60)


def test_on_a_cluster_replicas_go_if_the_front_end_is_killed(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = tmp_path_factory.mktemp("r", numbered=True)
    with head(folder) as (address, ray):
        arguments = command("--replicas", "1", "--threads", "1", "--cluster", address)
        arguments += ["--kv-memory", "64MiB"]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as front:
            assert front.stdout is not None
            told = json.loads(front.stdout.readline())
            assert told["replicas"] == 1
            client = openai.OpenAI(base_url=told["url"], api_key="none", timeout=300)
            answer = client.chat.completions.create(model=told["model"], messages=QUESTION)
            assert answer.choices[0].message.content
            assert len(processes(ray, "ray::ServeReplica:ossia-")) == 1
            busy = subprocess.run(
                command("--replicas", "2", "--cluster", address),
                capture_output=True,
                text=True,
                check=False,
            )
            assert busy.returncode == 2
            assert "2 CPUs are needed, and the cluster has 1 free" in busy.stderr
            front.kill()
        assert eventually(lambda: not processes(ray, "ray::ServeReplica:ossia-"))
