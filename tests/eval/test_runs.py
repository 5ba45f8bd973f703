"""Runs against an endpoint that follows a script: figures, failures, limits, and a kill midway."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ossia.errors import OssiaError
from ossia.eval import endpoint as endpoints
from ossia.eval import summary
from ossia.eval.options import EvalOptions
from ossia.eval.results import Results
from ossia.eval.runner import Progress
from ossia.eval.session import Session
from ossia.options import SamplingOptions
from tests.eval.scripted_endpoint import Answer, ScriptedEndpoint, serving

PRICES = {"m": {"input": 2.0, "cached_input": 0.5, "output": 10.0}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once, and no key of the user's is sent."""
    patience = endpoints.Patience
    monkeypatch.setattr(
        "ossia.eval.session.Patience", lambda seconds, retries: patience(seconds, retries, 0.001)
    )
    for variable in ("OPENAI_API_KEY", endpoints.KEY_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


def write_tasks(folder: Path, count: int = 10, **more: Any) -> Path:
    """Questions whose answers are their numbers."""
    file = folder / "tasks.jsonl"
    records = [
        {"id": f"q{n}", "question": f"What is {n}?", "answer": n, "scorer": "number", **more}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def number_of(body: dict[str, Any]) -> int:
    return int("".join(c for c in body["messages"][0]["content"] if c.isdigit()))


def start(folder: Path, sampling: dict[str, Any] | None = None, **options: Any) -> Session:
    given = EvalOptions(**options)
    asked = {**options, **(sampling or {})}

    def no_checkpoint(name: str):
        raise AssertionError(f"{name} is no endpoint")

    return Session(folder, given, SamplingOptions(**(sampling or {})), asked, no_checkpoint)


def ask(folder: Path, **options: Any) -> tuple[Progress, Results]:
    session = start(folder, **options)
    try:
        progress = session.run(lambda _: None, lambda: False)
        return progress, summary.summarize(session.store)
    finally:
        session.store.close()


def test_figures_are_those_of_the_script(tmp_path: Path) -> None:
    """7 of 10 at low effort and 9 of 10 at high; tokens and costs to the cent."""

    def script(body: dict[str, Any]) -> Answer:
        n, effort = number_of(body), body["reasoning_effort"]
        right = n < (7 if effort == "low" else 9)
        thought = 50 if effort == "high" else 5
        return Answer(
            f"The answer is {n if right else n + 1}.",
            "hm",
            completion=thought + 20,
            reasoning_tokens=thought,
            cached=40,
            finish="length" if n == 9 else "stop",
        )

    (tmp_path / "prices.json").write_text(json.dumps(PRICES))
    with serving(script) as served:
        progress, results = ask(
            tmp_path / "run",
            model=(f"{served.url}#m",),
            task=(str(write_tasks(tmp_path)),),
            effort="low,high",
            prices=tmp_path / "prices.json",
        )
    low, high = results.systems
    assert (low.name, low.overall.accuracy, high.overall.accuracy) == ("m low", 0.7, 0.9)
    assert round(low.overall.interval.low, 4) == 0.3968  # Wilson, 7 of 10
    assert round(low.overall.interval.high, 4) == 0.8922
    assert (low.tokens, low.reasoning_tokens) == (25, 5)
    assert (high.tokens, high.reasoning_tokens) == (70, 50)
    a_reply = 60 * 2e-6 + 40 * 0.5e-6
    assert low.cost == pytest.approx(10 * (a_reply + 25 * 10e-6))
    assert high.cost == pytest.approx(10 * (a_reply + 70 * 10e-6))
    assert progress.spent == pytest.approx((low.cost or 0) + (high.cost or 0))
    assert (low.truncated, low.malformed, low.no_answer) == (1, 0, 0)
    [pair] = results.pairs
    assert (pair.only_one, pair.only_other, pair.p) == (0, 2, 0.5)
    assert pair.difference == pytest.approx(0.2)
    assert not pair.differs
    assert [d.question for d in results.disagreements] == ["q7", "q8"]
    assert [said.answer for said in results.disagreements[0].said] == ["8", "7"]
    assert (results.unasked, progress.failed) == (0, 0)


def test_several_replies_give_pass_at_k_and_the_majority(tmp_path: Path) -> None:
    """q0 is right once in four times, q1 three times, q2 never."""
    seen: Counter[int] = Counter()
    right = {0: 1, 1: 3, 2: 0}

    def script(body: dict[str, Any]) -> Answer:
        n = number_of(body)
        seen[n] += 1
        return Answer(str(n if seen[n] <= right[n] else 100 + seen[n]))

    with serving(script) as served:
        _, results = ask(
            tmp_path / "run",
            model=(f"{served.url}#m",),
            task=(str(write_tasks(tmp_path, 3)),),
            repeat=4,
            sampling={"seed": 5},
        )
        seeds = Counter(body["seed"] for body in served.bodies)
    [system] = results.systems
    assert system.overall.accuracy == pytest.approx(4 / 12)
    assert system.pass_at == pytest.approx({1: 1 / 3, 2: (0.5 + 1 + 0) / 3, 4: 2 / 3})
    assert system.majority == pytest.approx((0.25 + 1 + 0) / 3)
    assert seeds == {5: 3, 6: 3, 7: 3, 8: 3}


def test_what_fails_in_passing_is_asked_again(tmp_path: Path) -> None:
    """Errors of the server, a lost connection, half a reply, no JSON, and a rate limit."""
    tries: Counter[int] = Counter()
    first = {
        0: Answer(status=500),
        1: Answer("1", cut=True),
        2: Answer(status=503),
        3: Answer(status=429, headers={"Retry-After": "0.3"}),
        4: Answer(status=408),
    }

    def script(body: dict[str, Any]) -> Answer:
        n = number_of(body)
        tries[n] += 1
        return first[n] if n in first and tries[n] == 1 else Answer(str(n))

    with serving(script) as served:
        progress, results = ask(
            tmp_path / "run",
            model=(f"{served.url}#m",),
            task=(str(write_tasks(tmp_path)),),
            concurrency=4,
        )
        assert served.most_at_once <= 4
    assert (progress.failed, results.systems[0].overall.accuracy) == (0, 1.0)
    assert tries == {n: 2 if n in first else 1 for n in range(10)}


def test_a_reply_that_does_not_come_is_asked_for_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def script(body: dict[str, Any]) -> Answer:
        asked.append(number_of(body))
        return Answer(str(asked[-1]), hang=60.0 if asked.count(1) == 1 == asked[-1] else 0.0)

    with serving(script) as served:
        progress, results = ask(
            tmp_path / "run",
            model=(f"{served.url}#m",),
            task=(str(write_tasks(tmp_path, 3)),),
            timeout=2.0,
            concurrency=1,
        )
    assert (progress.failed, results.systems[0].overall.accuracy) == (0, 1.0)
    assert asked.count(1) >= 2


def test_a_rate_limit_holds_back_every_request(tmp_path: Path) -> None:
    limited: list[float] = []

    def script(body: dict[str, Any]) -> Answer:
        if not limited:
            limited.append(time.monotonic())
            return Answer(status=429, headers={"Retry-After": "1"})
        return Answer(str(number_of(body)))

    with serving(script) as served:
        ask(
            tmp_path / "run",
            model=(f"{served.url}#m",),
            task=(str(write_tasks(tmp_path, 6)),),
            concurrency=1,
        )
        assert min(served.times[1:]) >= limited[0] + 1


def test_a_server_that_never_recovers_leaves_questions_for_the_next_time(tmp_path: Path) -> None:
    broken = True

    def script(body: dict[str, Any]) -> Answer:
        n = number_of(body)
        return Answer(status=500) if broken and n >= 8 else Answer(str(n))

    options = {"task": (str(write_tasks(tmp_path)),), "retries": 1, "concurrency": 1}
    with serving(script) as served:
        model = (f"{served.url}#m",)
        progress, results = ask(tmp_path / "run", model=model, **options)
        assert (progress.done, progress.failed, results.unasked) == (8, 2, 2)
        assert "HTTP 500: scripted (2 attempts)" in progress.problem
        asked, broken = len(served.bodies), False
        progress, results = ask(tmp_path / "run", retries=1)
        assert sorted(served.questions()[asked:]) == ["What is 8?", "What is 9?"]
    assert (progress.done, progress.failed, results.unasked) == (10, 0, 0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(status=401, error="no such key"), "HTTP 401: no such key"),
        (Answer(status=404), "HTTP 404: scripted"),
        (Answer(status=429, error="insufficient_quota"), "insufficient_quota"),
        (Answer(status=400, error="no such effort"), "the first 5 questions failed"),
    ],
)
def test_what_fails_for_all_ends_the_run(tmp_path: Path, answer: Answer, message: str) -> None:
    with serving(lambda _: answer) as served:
        session = start(
            tmp_path / "run",
            model=(f"{served.url}#m",),
            task=(str(write_tasks(tmp_path)),),
            concurrency=1,
        )
        with pytest.raises(OssiaError, match=message), session.store:
            session.run(lambda _: None, lambda: False)
        assert len(served.bodies) <= 5


def test_the_spending_limit_is_never_exceeded_and_holds_over_restarts(tmp_path: Path) -> None:
    """Each reply is as long as it may be, and the price of output counts."""
    (tmp_path / "prices.json").write_text(json.dumps({"m": {"input": 0, "output": 1000.0}}))
    with serving(lambda body: Answer("1", completion=body["max_completion_tokens"])) as served:
        options = {
            "model": (f"{served.url}#m",),
            "task": (str(write_tasks(tmp_path)),),
            "prices": tmp_path / "prices.json",
            "sampling": {"max_tokens": 100},
        }
        progress, _ = ask(tmp_path / "run", max_cost=0.35, **options)
        assert (progress.done, progress.left_out, progress.failed) == (3, 7, 0)
        assert progress.spent == pytest.approx(0.3)
        progress, _ = ask(tmp_path / "run", max_cost=0.55, **options)
        assert (progress.done, len(served.bodies)) == (5, 5)


def test_a_limit_needs_prices_and_the_longest_reply(tmp_path: Path) -> None:
    tasks = (str(write_tasks(tmp_path)),)
    model = ("http://127.0.0.1:9/v1#m",)
    with pytest.raises(OssiaError, match="--max-cost needs --max-tokens"):
        start(tmp_path / "run", model=model, task=tasks, max_cost=1.0)
    with pytest.raises(OssiaError, match="--prices has no price of http"):
        start(tmp_path / "b", model=model, task=tasks, max_cost=1.0, sampling={"max_tokens": 9})


def test_tools_run_and_their_results_are_sent_back(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Answer:
        *_, last = body["messages"]
        if last["role"] == "user":
            calls = (("calculate", '{"expression": "6 * 7"}'), ("own", '{"x": 1}'))
            return Answer(calls=calls, reasoning="I need a tool.", finish="tool_calls")
        [said] = [m for m in body["messages"] if m["role"] == "assistant"]
        assert said["reasoning_content"] == "I need a tool."
        results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
        return Answer(" ".join(results))

    record = {
        "question": "6 * 7?",
        "answer": "42 on file",
        "tools": [{"type": "function", "function": {"name": "calculate", "parameters": {}}}],
        "results": [{"name": "own", "arguments": '{"x":1}', "result": "on file"}],
    }
    (tmp_path / "tasks.jsonl").write_text(json.dumps(record))
    with serving(script) as served:
        _, results = ask(
            tmp_path / "run", model=(f"{served.url}#m",), task=(str(tmp_path / "tasks.jsonl"),)
        )
    [system] = results.systems
    assert (system.overall.accuracy, system.calls, system.tokens) == (1.0, 2, 20)


def test_a_judge_is_another_model_and_its_cost_counts(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Answer:
        if body["model"] == "judge":
            right = "<reply>\n3" in body["messages"][0]["content"]
            return Answer(f"GRADE: {'RIGHT' if right else 'WRONG'}", prompt=1000, completion=0)
        return Answer(str(number_of(body)), prompt=0, completion=0)

    prices = {"m": {"input": 0, "output": 0}, "judge": {"input": 1.0, "output": 0}}
    (tmp_path / "prices.json").write_text(json.dumps(prices))
    tasks = write_tasks(tmp_path, 5, scorer="judge")
    with serving(script) as served:
        options: dict[str, Any] = {"model": (f"{served.url}#m",), "task": (str(tasks),)}
        with pytest.raises(OssiaError, match="name one with --judge"):
            start(tmp_path / "none", **options)
        progress, results = ask(
            tmp_path / "run",
            judge=f"{served.url}#judge",
            prices=tmp_path / "prices.json",
            **options,
        )
    assert results.systems[0].overall.accuracy == 0.2
    assert progress.spent == pytest.approx(0.005)


def test_a_key_is_sent_to_openai_alone_unless_it_is_meant_for_all(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    tasks = (str(write_tasks(tmp_path, 1)),)
    with serving(lambda _: Answer("0")) as served:
        ask(tmp_path / "one", model=(f"{served.url}#m",), task=tasks)
        monkeypatch.setenv(endpoints.KEY_VARIABLE, "mine")
        ask(tmp_path / "two", model=(f"{served.url}#m",), task=tasks)
        assert served.keys == [None, "Bearer mine"]


def test_an_older_servers_name_for_the_limit_is_found_out(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Answer:
        if "max_completion_tokens" in body:
            return Answer(status=400, error="unknown field max_completion_tokens")
        return Answer(str(number_of(body)), completion=body["max_tokens"])

    with serving(script) as served:
        _, results = ask(
            tmp_path / "run",
            model=(f"{served.url}#m",),
            task=(str(write_tasks(tmp_path, 3)),),
            sampling={"max_tokens": 7},
            concurrency=1,
        )
        assert len(served.bodies) == 4
    assert (results.systems[0].overall.accuracy, results.systems[0].tokens) == (1.0, 7)


def test_reasoning_in_tags_is_no_part_of_the_answer(tmp_path: Path) -> None:
    replies = {0: "<think>9</think>\n0", 1: "8</think>1", 2: "<think>2 or 3"}
    with serving(lambda body: Answer(replies[number_of(body)])) as served:
        _, results = ask(
            tmp_path / "run", model=(f"{served.url}#m",), task=(str(write_tasks(tmp_path, 3)),)
        )
    [system] = results.systems
    assert system.overall.accuracy == pytest.approx(2 / 3)
    assert (system.malformed, system.reasoning_tokens) == (1, None)


def test_a_run_goes_on_only_as_it_began(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path, 2)
    with serving(lambda body: Answer(str(number_of(body)))) as served:
        model = (f"{served.url}#m",)
        ask(tmp_path / "run", model=model, task=(str(tasks),), sampling={"temperature": 0.5})
        ask(tmp_path / "run", model=(f"{served.url}#n",), effort="high")
        asked = Counter((b["model"], b.get("reasoning_effort")) for b in served.bodies)
        assert asked == {("m", None): 2, ("m", "high"): 2, ("n", None): 2, ("n", "high"): 2}
        assert {body["temperature"] for body in served.bodies} == {0.5}
        with pytest.raises(OssiaError, match="began with the sampling"):
            start(tmp_path / "run", sampling={"temperature": 1.0})
        with pytest.raises(OssiaError, match="--max-tokens 5: the run began with None"):
            start(tmp_path / "run", sampling={"max_tokens": 5})
        tasks.write_text(tasks.read_text().replace('"answer": 1', '"answer": 2'))
        with pytest.raises(OssiaError, match="q1 is not as when the run began"):
            start(tmp_path / "run", task=(str(tasks),))
        session = start(tmp_path / "run")
        with pytest.raises(OssiaError, match="in use by another process"):
            start(tmp_path / "run")
        session.store.close()


def test_a_run_that_cannot_begin_leaves_nothing_behind(tmp_path: Path) -> None:
    """Else the corrected command would go on with what was wrong."""
    run, tasks = tmp_path / "run", (str(write_tasks(tmp_path, 2)),)

    def missing(name: str):
        raise OssiaError(f"{name} is no model")

    with pytest.raises(OssiaError, match="--effort silly"):
        start(run, task=tasks, effort="silly")
    assert not run.exists()
    session = Session(run, EvalOptions(model=("m",), task=tasks), SamplingOptions(), {}, missing)
    with pytest.raises(OssiaError, match="m is no model"):
        session.run(lambda _: None, lambda: False)
    assert not run.exists()
    with serving(lambda body: Answer(str(number_of(body)))) as served:
        progress, _ = ask(run, model=(f"{served.url}#m",), task=tasks)
        assert (progress.done, progress.right) == (2, 2)
        with pytest.raises(OssiaError, match="--effort silly"):
            start(run, effort="silly")
        assert ask(run)[0].done == 2  # what is there is kept


def test_the_packaged_model_is_asked_one_question_at_a_time(tmp_path: Path) -> None:
    """So that its card can be reproduced to the digit, also by a run that goes on."""
    cases: tuple[tuple[str, dict[str, Any], int], ...] = (
        ("run", {}, 1),
        ("run", {}, 1),
        ("faster", {"concurrency": 4}, 4),
        ("faster", {}, 4),
        ("faster", {"concurrency": 2}, 2),
        ("other", {"task": (str(write_tasks(tmp_path)),)}, 16),
    )
    for folder, options, expected in cases:
        session = start(tmp_path / folder, **options)
        with session.store:
            assert session.work.concurrency == expected


def test_a_kill_midway_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """What was on file when the process was killed is not asked again, and all is once on file."""
    tasks = write_tasks(tmp_path, 60)
    run = tmp_path / "run"
    command = [sys.executable, "-P", "-m", "ossia", "eval", "--out", str(run), "--concurrency", "3"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    most = 0  # requests that are answered at once: a process gets no further before it is killed

    def script(body: dict[str, Any]) -> Answer:
        return Answer(str(number_of(body)), hang=0.02 if len(served.bodies) <= most else 60.0)

    with serving(script) as served:
        more = ["--model", f"{served.url}#m", "--task", str(tasks)]
        for least in (8, 25):
            most = least + 10
            process = subprocess.Popen(
                [*command, *more],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            wait_for_requests(served, least, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kept, asked = on_file(run), len(served.bodies)
            assert least - 7 <= len(kept) < 60  # three were in flight at each kill, at most
            more = []
        most = 1000
        ended = subprocess.run(
            [*command, "--json"], env=environment, check=True, capture_output=True
        )
        again = set(served.questions()[asked:])
    assert again == {f"What is {n}?" for n in range(60)} - {f"What is {q[1:]}?" for q in kept}
    results = json.loads(ended.stdout)
    assert results["systems"][0]["overall"]["questions"] == results["systems"][0]["replies"] == 60
    assert results["systems"][0]["overall"]["accuracy"] == 1.0
    assert results["unasked"] == 0


def wait_for_requests(served: ScriptedEndpoint, count: int, process: subprocess.Popen) -> None:
    while len(served.bodies) < count:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)


def on_file(run: Path) -> set[str]:
    database = sqlite3.connect(run / "run.sqlite")
    try:
        return {row[0] for row in database.execute("SELECT question FROM replies")}
    finally:
        database.close()
