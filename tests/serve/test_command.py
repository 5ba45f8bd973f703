"""`ossia serve` over the model inside the package, as a process of its own, and its options."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from ossia.serve.responses.store import ResponseStore
from ossia.tools.chosen import ChosenTools
from ossia.tools.toolset import Result
from tests.serve.conftest import openai


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def kept(tmp_path) -> Path:
    return tmp_path / "responses.sqlite"


@pytest.fixture
def process(log, kept) -> Iterator[subprocess.Popen]:
    arguments = ["serve", "--port", "0", "--json", "--api-key", "key", "--kv-memory", "64MiB"]
    arguments += ["--responses", str(kept), "--tool", "calculate", "--drain-seconds", "600"]
    command = [sys.executable, "-m", "ossia", *arguments]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        yield process
        process.kill()


def test_it_answers_until_it_is_told_to_end_and_then_ends_what_runs(process, log, kept):
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told["model"] == "ossia-stdlib"
    assert told["kv_bytes"] <= 64 * 2**20
    client = openai.OpenAI(base_url=told["url"], api_key="key", max_retries=0, timeout=120)
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    for _ in range(2):
        answer = client.chat.completions.create(
            model=told["model"], messages=question, temperature=0, max_tokens=200
        )
    assert "4" in answer.choices[0].message.content
    details = answer.usage.prompt_tokens_details
    assert 0 < details.cached_tokens < answer.usage.prompt_tokens
    large = [{"role": "user", "content": "What is 48213 * 977?"}]
    answer = client.chat.completions.create(model=told["model"], messages=large, temperature=0)
    (call,) = answer.choices[0].message.server_tool_calls
    assert (call["function"]["name"], call["output"]) == ("calculate", "47104101")
    assert "47104101" in answer.choices[0].message.content.replace(",", "")
    stream = client.completions.create(
        model=told["model"],
        prompt="def",
        stream=True,
        max_tokens=400,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    chunks = [next(stream)]
    background = client.responses.create(
        model=told["model"], input="What is 3 + 3?", background=True, max_output_tokens=200
    )
    process.send_signal(signal.SIGTERM)
    chunks += stream
    assert chunks[-1].choices[0].finish_reason == "length"
    assert process.wait(600) == 0
    found = ResponseStore(kept).get(background.id)
    assert found is not None
    assert found.response["status"] in ("completed", "incomplete")
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if "status" in line] == [200] * 5
    assert "2 + 2" not in str(lines)


def test_a_port_that_is_taken_is_one_line(ossia_command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = ossia_command("serve", "--port", taken.getsockname()[1])
    assert result.code == 2
    assert "cannot listen on 127.0.0.1 port" in result.err
    assert "Address already in use; choose another" in " ".join(result.err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one", "--model", "two"], "named twice"),
        (["--api-key", ""], "a key is empty"),
        (["--max-body", "much"], "much"),
        (["--responses-size", "much"], "much"),
        (["--max-per-key", "2"], "--max-per-key needs --api-key"),
        (["--timeout", "0"], "--timeout must be at least 0.001"),
        (["--cluster", "auto"], "--cluster is for --replicas"),
        (["--replicas", "0"], "--replicas must be at least 1"),
        (["--replicas", "2", "--devices", "2"], "--devices: a replica has one device"),
        (["--replicas", "2", "--device", "cuda:1"], "--device cuda:1: Ray gives each replica"),
        (["--replicas", "2", "--mcp", "uvx mcp-server-time"], "--mcp uvx mcp-server-time: each"),
        (["--port", "70000"], "--port must be at least 0 and at most 65535"),
    ],
)
def test_a_wrong_option_is_one_line(ossia_command, arguments, message):
    result = ossia_command("serve", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_without_its_packages_it_says_how_to_get_them(ossia_command, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("ossia.serve.")]:
        if module != "ossia.serve.options":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = ossia_command("serve")
    assert result.code == 2
    assert "pip install 'ossia[serve]'" in result.err


def test_without_ray_it_says_how_to_get_it(ossia_command, monkeypatch):
    for module in ("cluster", "deployment"):
        monkeypatch.delitem(sys.modules, f"ossia.serve.replicas.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    result = ossia_command("serve", "--replicas", "2")
    assert result.code == 2
    assert "pip install 'ossia[serve,ray]'" in result.err


def test_a_tool_that_there_is_not_is_refused_before_the_model_is_loaded():
    command = [sys.executable, "-m", "ossia", "serve", "--port", "0"]
    command += ["--tool", "calculate", "--tool", "shell", "missing/model"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must be one of python, browser=FOLDER, calculate, documentation" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(OssiaError, match="no such folder"):
        ChosenTools(["browser=/missing"])


def test_python_is_refused_where_it_cannot_be_locked_down(monkeypatch):
    def refuse() -> None:
        raise OssiaError("Python code cannot be run safely on this machine: no Landlock")

    monkeypatch.setattr("ossia.tools.python.tool.check", refuse)
    with pytest.raises(OssiaError, match="no Landlock"):
        ChosenTools(["python"])


def test_tools_are_chosen_by_name(tmp_path):
    chosen = ChosenTools(["documentation", f"browser={tmp_path}", "calculate", "calculate"])
    browser, functions = chosen.toolsets(len)
    assert [f.name for f in browser.functions] == ["browser.search", "browser.open", "browser.find"]
    assert [f.name for f in functions.functions] == ["calculate", "documentation"]
    with pytest.raises(OssiaError, match="one browser"):
        ChosenTools([f"browser={tmp_path}"] * 2)

    async def results() -> list[Result]:
        call = functions.begin()
        return [
            await call("calculate", '{"expression": "6*7"}'),
            await call("calculate", "{}"),
        ]

    good, bad = asyncio.run(results())
    assert (good.text, good.is_error, bad.is_error) == ("42", False, True)
