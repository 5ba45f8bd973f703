"""What a run leaves: the page, the command's output and exit code, and runs compared."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ossia.errors import OssiaError
from ossia.eval import comparison, contamination, report, summary
from ossia.eval.results import Results
from ossia.eval.tasks import question_of
from tests.eval.scripted_endpoint import Answer, serving
from tests.eval.test_runs import ask, number_of, start, write_tasks


class Balanced(HTMLParser):
    """Collects text, and fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def run_of(folder: Path, right: int, count: int = 40, model: str = "m", **options: Any) -> None:
    """A run in which the first `right` questions are answered."""
    with serving(lambda b: Answer(str(n if (n := number_of(b)) < right else -1))) as served:
        tasks = folder.parent / "tasks"
        tasks.mkdir(exist_ok=True)
        asked = {"model": (f"{served.url}#{model}",), "task": (str(write_tasks(tasks, count)),)}
        ask(folder, **asked, **options)


def test_runs_are_compared_by_the_questions_that_turned(tmp_path: Path, ossia_command) -> None:
    run_of(tmp_path / "good", 30)
    run_of(tmp_path / "worse", 20)
    run_of(tmp_path / "close", 28)
    worse = ossia_command("eval", "compare", tmp_path / "good", tmp_path / "worse")
    assert worse.code == 1, worse.err
    assert worse.out.startswith("m: -25.0% over 40 questions")
    assert "McNemar p = 0.00195): worse" in worse.out  # 2 / 2 ** 10
    assert "  lost 10:\n    q20  What is 20?\n    q21  " in worse.out
    better = ossia_command("eval", "compare", tmp_path / "worse", tmp_path / "good", "--json")
    assert better.code == 0
    [found] = json.loads(better.out)
    assert (found["verdict"], len(found["won"]), found["lost"]) == ("better", 10, [])
    assert found["won"][0] == {"id": "q20", "text": "What is 20?"}
    close = ossia_command("eval", "compare", tmp_path / "good", tmp_path / "close")
    assert close.code == 0
    assert "within the noise" in close.out


def test_runs_without_a_question_in_common_are_not_compared(tmp_path: Path, ossia_command) -> None:
    run_of(tmp_path / "one", 2, 3)
    missing = ossia_command("eval", "compare", tmp_path / "one", tmp_path / "none")
    assert missing.code == 2
    assert f"{tmp_path}/none holds no run" in missing.err
    with serving(lambda _: Answer("1")) as served:
        other = write_tasks(tmp_path, 3, tolerance=0.5)
        ask(tmp_path / "other", model=(f"{served.url}#m",), task=(str(other),))
    assert comparison.compare_runs(tmp_path / "one", tmp_path / "other") == []
    apart = ossia_command("eval", "compare", tmp_path / "one", tmp_path / "other")
    assert (apart.code, "share no model" in apart.err) == (2, True)


def test_no_question_of_a_data_set_can_steer_the_terminal(tmp_path: Path, ossia_command) -> None:
    tasks = write_tasks(tmp_path, 1, question="What is 0?\x1b[2J")
    for folder, answer in (("good", "0"), ("bad", "1")):
        with serving(lambda _, answer=answer: Answer(answer)) as served:
            ask(tmp_path / folder, model=(f"{served.url}#m",), task=(str(tasks),))
    shown = ossia_command("eval", "compare", tmp_path / "good", tmp_path / "bad").out
    assert "  q0  What is 0?␛[2J\n" in shown


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two models at two efforts, each question twice, with markup in what they say."""

    def script(body: dict[str, Any]) -> Answer:
        n, high = number_of(body), body["reasoning_effort"] == "high"
        right = n < (6 if high else 3) + (body["model"] == "b")
        return Answer(str(n) if right else "<b>&</b>", completion=90 if high else 9)

    text = tmp_path / "training.txt"
    words = "how much wood would a woodchuck chuck if it could chuck wood today"
    text.write_text(f"once upon a time {words.upper()}, he asked")
    tasks = write_tasks(tmp_path, 8)
    more = {"id": "long", "question": f"0 {words}", "answer": 0, "scorer": "number", "task": "<i>"}
    tasks.write_text(tasks.read_text() + json.dumps(more))
    with serving(script) as served:
        models = (f"{served.url}#a", f"{served.url}#b")
        options = {"task": (str(tasks),), "effort": "low,high", "repeat": 2}
        session = start(tmp_path / "run", model=models, **options)
        with session.store:
            session.run(lambda _: None, lambda: False)
            return summary.summarize(session.store, str(text))


def test_the_page_holds_what_was_measured_and_runs_nothing(results: Results, tmp_path) -> None:
    page = report.write(results, tmp_path).read_text()
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert not re.search(r"<script|<img|<link|https?://(?!127)|<b>&</b>|<i>:", page)
    for title in ("Accuracy", "What an effort costs and buys", "Task by task", "Several replies"):
        assert f"<h2>{title}</h2>" in page
    for system in results.systems:
        assert f"{100 * system.overall.accuracy:.1f}%" in parser.text
    assert "pass@2" in parser.text
    assert "Figures that others published" not in page  # there are none about these tasks
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["systems"][0]["overall"]["accuracy"] == results.systems[0].overall.accuracy
    assert len(stored["pairs"]) == 4  # two efforts of each model, and two models at each effort


def test_questions_in_the_training_text_are_told_apart(results: Results) -> None:
    found = results.contamination
    assert found is not None
    assert (found.checked, [overlap.question for overlap in found.found]) == (1, ["long"])
    system = results.systems[0]
    assert system.overlapping is not None
    assert system.clean is not None
    assert (system.overlapping.questions, system.clean.questions) == (1, 8)


def test_an_overlap_is_a_row_of_words_whatever_their_case(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(20)]
    question = question_of({"question": " ".join(words), "answer": 1}, "here", "t")
    (tmp_path / "a.txt").write_text(f"{' '.join(words[3:16]).upper()}! other words")
    (tmp_path / "b.txt").write_text(" ".join(words[:12]))
    [found] = contamination.check([question], str(tmp_path)).found
    assert found.share == pytest.approx(1 / 8)  # one of eight rows of 13 words
    assert contamination.check([question], str(tmp_path / "b.txt")).found == ()
    with pytest.raises(OssiaError, match="no such file"):
        contamination.check([question], str(tmp_path / "none"))


def test_published_figures_stand_apart_with_their_sources(tmp_path: Path) -> None:
    rows = tmp_path / "aime.jsonl"
    rows.write_text(json.dumps({"problem": "1?", "answer": "1"}))
    with serving(lambda _: Answer("1")) as served:
        session = start(tmp_path / "run", model=(f"{served.url}#m",), task=(f"aime-2025:{rows}",))
        with session.store:
            session.run(lambda _: None, lambda: False)
            found = summary.summarize(session.store)
    page = report.render(found)
    section = page.partition("Figures that others published")[2].partition("<h2>")[0]
    assert "None of these was measured in this run." in section
    assert "gpt-oss-20b</td><td>medium</td><td>72.1%</td>" in section
    assert "arXiv:2508.10925, table 3" in section
    assert all(
        figure.model != system.name for figure in found.published for system in found.systems
    )
    assert "Prompt of aime-2025: github.com/openai/gpt-oss" in page


def test_the_command_says_what_is_missing_and_fails(tmp_path: Path, ossia_command) -> None:
    tasks = write_tasks(tmp_path, 8)
    with serving(lambda b: Answer(str(n := number_of(b)), status=500 if n == 7 else 200)) as served:
        arguments = ["--model", f"{served.url}#m", "--task", tasks, "--retries", 0]
        found = ossia_command("eval", "--out", tmp_path / "run", *arguments)
    assert found.code == 1
    assert "1 failed, the last: " in found.err
    assert "HTTP 500: scripted (1 attempts)" in found.err
    assert re.search(r"^m +100\.0% +64\.6% to 100\.0% +7 ", found.out, re.MULTILINE)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "none.jsonl"], "--task none.jsonl: neither a file nor a known data set"),
        (["--effort", "huge"], "--effort huge: the efforts are none, minimal, low"),
        (["--model", "http://host/v1"], "is named like http://localhost:8000/v1#MODEL"),
        (["--repeat", "0"], "--repeat must be at least 1, not 0"),
        (["--prices", "none.json"], "cannot read none.json"),
        (["--max-cost", "1", "--max-tokens", "5", "--model", "http://h/v1#m"], "has no price of"),
    ],
)
def test_bad_options_are_one_line(tmp_path, ossia_command, arguments, message: str) -> None:
    found = ossia_command("eval", "--out", tmp_path / "run", *arguments)
    assert (found.code, found.out) == (2, "")
    assert message in " ".join(found.err.split())
    assert len(found.err.strip().splitlines()) == 1
