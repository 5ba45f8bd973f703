"""A run in SQLite: its plan, its questions, and each reply from the moment that it came."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from ossia.errors import OssiaError
from ossia.eval.answers import Answered, Usage
from ossia.eval.scoring import Verdict
from ossia.eval.tasks import Question, Scorer, ToolResult

FILE = "run.sqlite"
_VERSION = 1
_SCHEMA = (
    "PRAGMA locking_mode = EXCLUSIVE",  # two processes would ask the same questions
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "CREATE TABLE IF NOT EXISTS plan (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS questions (id TEXT PRIMARY KEY, number INTEGER NOT NULL, "
    "digest TEXT NOT NULL, question TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS replies (model TEXT NOT NULL, effort TEXT NOT NULL, question TEXT "
    "NOT NULL, repeat INTEGER NOT NULL, answered TEXT NOT NULL, cost REAL, verdict TEXT, "
    "judge_cost REAL, PRIMARY KEY (model, effort, question, repeat))",
)


@dataclass(frozen=True, order=True)
class Sample:
    """What is asked: a question of a model, at an effort ('' is the model's own), for the n-th
    time.
    """

    model: str
    effort: str
    question: str
    repeat: int


@dataclass(frozen=True)
class Recorded:
    """A reply on file. cost: US dollars, with the judge's; None if unknown. verdict: None until it
    is scored.
    """

    sample: Sample
    answered: Answered
    cost: float | None
    verdict: Verdict | None


class Store:
    """The file of a run in a folder, which is made if `create`; of one process at a time.

    Raises OssiaError for a folder without a run, for a file that is none, and for one that another
    process uses.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        file = folder / FILE
        if not create and not file.is_file():
            raise OssiaError(f"{folder} holds no run; ossia eval --out {folder} makes one")
        self._folder, self._made = folder, not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(file, timeout=1.0, isolation_level=None)
            for statement in _SCHEMA:
                self._database.execute(statement)
        except sqlite3.OperationalError as error:
            why = "is in use by another process" if "locked" in str(error) else str(error)
            raise OssiaError(f"{file}: {why}") from error
        except sqlite3.DatabaseError as error:
            raise OssiaError(f"{file} is no run of ossia eval: {error}") from error
        version = self.plan("version")
        if version is None:
            self.set_plan("version", _VERSION)
        elif version != _VERSION:
            raise OssiaError(f"{file} is of another version of ossia")

    def close(self) -> None:
        self._database.close()

    def remove(self) -> None:
        """Close and delete the file, and the folder if this object made it and nothing else is
        there.
        """
        self.close()
        for suffix in ("", "-wal", "-shm"):
            (self._folder / f"{FILE}{suffix}").unlink(missing_ok=True)
        if self._made:
            with suppress(OSError):
                self._folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plan(self, key: str) -> Any:
        """A value of the plan; None if it has none."""
        row = self._database.execute("SELECT value FROM plan WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_plan(self, key: str, value: Any) -> None:
        row = (key, json.dumps(value))
        self._database.execute("INSERT OR REPLACE INTO plan VALUES (?, ?)", row)

    def add_questions(self, questions: Sequence[Question]) -> None:
        """Add those that are new. Raises OssiaError for one that the run has in another form."""
        known = dict(self._database.execute("SELECT id, digest FROM questions"))
        for question in questions:
            if known.get(question.id, question.digest) != question.digest:
                raise OssiaError(
                    f"the question {question.id} is not as when the run began; give a new --out"
                )
        rows = [
            (question.id, number, question.digest, json.dumps(asdict(question)))
            for number, question in enumerate(questions, len(known))
            if question.id not in known
        ]
        with self._transaction():
            self._database.executemany("INSERT INTO questions VALUES (?, ?, ?, ?)", rows)

    def questions(self) -> list[Question]:
        """All questions, in the order in which they were added."""
        rows = self._database.execute("SELECT question FROM questions ORDER BY number")
        return [_question(json.loads(row[0])) for row in rows]

    def add_reply(self, sample: Sample, answered: Answered, cost: float | None) -> None:
        """Keep a reply; when this returns it is on the disk."""
        values = (*vars(sample).values(), json.dumps(asdict(answered)), cost)
        self._database.execute(
            "INSERT INTO replies (model, effort, question, repeat, answered, cost) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            values,
        )

    def add_verdict(self, sample: Sample, verdict: Verdict, cost: float | None) -> None:
        """Keep the verdict on a reply, and what the judge cost."""
        self._database.execute(
            "UPDATE replies SET verdict = ?, judge_cost = ? "
            "WHERE model = ? AND effort = ? AND question = ? AND repeat = ?",
            (json.dumps(asdict(verdict)), cost, *vars(sample).values()),
        )

    def samples(self) -> set[Sample]:
        """Those that have a reply."""
        rows = self._database.execute("SELECT model, effort, question, repeat FROM replies")
        return {Sample(*row) for row in rows}

    def unscored(self) -> list[tuple[Sample, Answered]]:
        """Replies without a verdict."""
        return [(r.sample, r.answered) for r in self.replies() if r.verdict is None]

    def replies(self) -> Iterator[Recorded]:
        """All replies on file."""
        rows = self._database.execute(
            "SELECT model, effort, question, repeat, answered, cost, judge_cost, verdict "
            "FROM replies ORDER BY model, effort, repeat, question"
        )
        for *key, answered, cost, judged, verdict in rows.fetchall():
            total = None if cost is None else cost + (judged or 0.0)
            found = None if verdict is None else Verdict(**json.loads(verdict))
            yield Recorded(Sample(*key), _answered(json.loads(answered)), total, found)

    def tally(self) -> tuple[int, int, float]:
        """The number of replies with a verdict, of those that are right, and US dollars spent."""
        scored, right, spent = self._database.execute(
            "SELECT COUNT(verdict), SUM(json_extract(verdict, '$.right')), "
            "SUM(COALESCE(cost, 0) + COALESCE(judge_cost, 0)) FROM replies"
        ).fetchone()
        return scored, right or 0, spent or 0.0

    def _transaction(self) -> sqlite3.Connection:
        self._database.execute("BEGIN")
        return self._database


def _question(record: dict[str, Any]) -> Question:
    """A question as it was stored."""
    results = tuple(ToolResult(**result) for result in record.pop("results"))
    scorer = Scorer(record.pop("scorer"))
    lists = {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
    return Question(**{**record, **lists}, results=results, scorer=scorer)


def _answered(record: dict[str, Any]) -> Answered:
    usage = Usage(**record.pop("usage"))
    values = {field.name: record[field.name] for field in fields(Answered) if field.name in record}
    return Answered(**{**values, "turns": tuple(record.get("turns", ()))}, usage=usage)
