"""`python -m recipes.stdlib`: text that teaches ossia-stdlib, and scores on held-out chats."""

from __future__ import annotations

import json
import lzma
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.fields import derived
from ossia.cli.options import ModelOption, open_llm
from ossia.errors import OssiaError
from ossia.options import LoadOptions, ThreadOptions
from recipes.stdlib import scoring

if TYPE_CHECKING:
    from recipes.stdlib.dialogues import Dialogue

app = typer.Typer(
    name="python -m recipes.stdlib",
    help="Write the text that ossia-stdlib learns from, and score models on held-out chats.",
    epilog="Example: python -m recipes.stdlib write --out dialogues",
    no_args_is_help=True,
    rich_markup_mode=None,
)

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"


@app.command(epilog="Example: python -m recipes.stdlib words --out words.jsonl")
def words(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A new file.")],
) -> None:
    """Write text for a vocabulary, which `ossia train --vocabulary-data` reads.

    It holds the words of harmony and of simple chats, each many times, as source code lacks them.
    """
    from recipes.stdlib.words import chat_words

    if out.exists() or not out.parent.is_dir():
        raise OssiaError(f"--out {out}: not a new file in an existing folder")
    lines = _write_lines(out, (json.dumps({"text": text}) for text in chat_words()))
    print(f"{out}: {lines:,} texts")


@app.command(epilog="Example: python -m recipes.stdlib write --seed 0 --out dialogues")
def write(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="A new folder for both files.")
    ],
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of all that is drawn.")] = 0,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Chats to train on.")] = 40_000,
    held_out: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Questions of each task never trained on; three chats each."
        ),
    ] = 40,
) -> None:
    """Write chats to train on, and others that are held out.

    A chat is a line of JSON, with its tools, its reasoning effort and its date. The same Python and
    the same seed give the same bytes.
    """
    from recipes.stdlib import dialogues as made

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OssiaError(f"--out {out}: exists and is not an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    for name, chats in (
        (TRAIN, made.training(seed, count)),
        (HELD_OUT, made.held_out(seed, held_out)),
    ):
        print(f"{out / name}: {_write_lines(out / name, chats):,} chats")


@app.command(epilog="Example: python -m recipes.stdlib extend --context 2048 --out longer")
def extend(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="A new folder.")],
    context: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens.")],
    model: ModelOption = None,
) -> None:
    """Copy a checkpoint that uses YaRN, for a longer context.

    Its weights stay as they are, and learn the new positions by `ossia finetune`.
    """
    from ossia import checkpoint
    from recipes.stdlib.context import extended

    extended(checkpoint.find(model), out, context)
    print(f"{out}: a context of {context:,} tokens")


@app.command(
    epilog="Example: python -m recipes.stdlib tasks --data held_out.jsonl --out tasks.jsonl.xz"
)
def tasks(
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="The held-out chats that `write` wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A new file.")],
) -> None:
    """Write the held-out chats as questions, which `ossia eval` asks."""
    from recipes.stdlib.tasks import questions

    if out.exists() or not out.parent.is_dir():
        raise OssiaError(f"--out {out}: not a new file in an existing folder")
    lines = [json.dumps(question) for question in questions(scoring.read(data))]
    out.write_bytes(lzma.compress("".join(f"{line}\n" for line in lines).encode()))
    print(f"{out}: {len(lines):,} questions")


@app.command(
    epilog="Example: python -m recipes.stdlib score --model tuned --data dialogues/held_out.jsonl"
)
@derived
def score(
    *,
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="The held-out chats that `write` wrote.")
    ],
    model: ModelOption = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Questions of each task. [default: all]"),
    ] = None,
    kernels: ThreadOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    wrong: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what was answered wrongly there.")
    ] = None,
) -> None:
    """Count a model's right answers.

    It answers at temperature 0, and the tools that it calls are run. Right is an answer equal to
    the one on file. Well-formed is a reply that a strict parser reads and that ends as its kind
    must.
    """
    from rich.console import Console
    from rich.progress import track

    if wrong is not None and (wrong.is_dir() or not wrong.parent.is_dir()):
        raise OssiaError(f"--wrong {wrong}: not a file that can be written")
    if wrong is not None and wrong.exists() and data.exists() and wrong.samefile(data):
        raise OssiaError(f"--wrong {wrong}: is what --data reads; give another file")
    chats = list(scoring.select(scoring.read(data), count))
    llm = open_llm(model, LoadOptions(threads=kernels.threads))
    if llm.chat_format.name != "harmony":
        raise OssiaError(f"the model speaks {llm.chat_format.name}, and the dialogues are harmony")
    start = time.perf_counter()
    answers = scoring.answer(llm, chats)
    console = Console(stderr=True)
    answered = track(answers, "answering", len(chats), console=console, transient=True)
    results = list(answered)
    report = scoring.summarize(results) | {"seconds": round(time.perf_counter() - start, 1)}
    if wrong is not None:
        mistakes = [asdict(result) for result in results if not result.right]
        _write_lines(wrong, (json.dumps(mistake, ensure_ascii=False) for mistake in mistakes))
    print(json.dumps(report) if as_json else _table(report))


@app.command(epilog="Example: python -m recipes.stdlib typed --model tuned")
@derived
def typed(
    *,
    model: ModelOption = None,
    kernels: ThreadOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a model the thirty things that people type first.

    Each is asked as in `ossia chat` without options, alone and as the third question of a chat.
    """
    from recipes.stdlib.first_typed import FIRST_TYPED, answers

    found = answers(open_llm(model, LoadOptions(threads=kernels.threads)))
    report: dict[str, Any] = {"questions": len(FIRST_TYPED)}
    for place, replies in found.items():
        pairs = list(zip(FIRST_TYPED, replies, strict=True))
        report[place] = sum(reply == one.answer for one, reply in pairs)
        report[f"wrong_{place}"] = {o.question: reply for o, reply in pairs if reply != o.answer}
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    for place in found:
        print(f"{place}: {report[place]} of {report['questions']}")
        for question, reply in report[f"wrong_{place}"].items():
            print(f"  {question} -> {reply}")


def _table(report: dict[str, Any]) -> str:
    efforts = list(report["mean_accuracy"])
    positions = report["accuracy_by_position"].items()
    rows = [
        *report["accuracy"].items(),
        *((f"question {position}", shares) for position, shares in positions),
        ("all", report["mean_accuracy"]),
    ]
    lines = [" " * 18 + "".join(f"{effort:>8}" for effort in efforts)]
    lines += [
        f"{name:<18}" + "".join(f"{row[e]:8.0%}" if e in row else " " * 8 for e in efforts)
        for name, row in rows
    ]
    lines.append(f"well-formed {report['well_formed']:.1%} of {report['chats']:,} chats")
    return "\n".join(lines)


def _write_lines(file: Path, lines: Iterable[str | Dialogue]) -> int:
    number = 0
    with file.open("w", encoding="utf-8") as stream:
        for number, line in enumerate(lines, 1):
            print(line if isinstance(line, str) else line.line(), file=stream)
            if number % 1000 == 0 and sys.stderr.isatty():
                print(f"\r{file.name}: {number:,}", end="", file=sys.stderr, flush=True)
    return number
