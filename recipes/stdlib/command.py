"""`python -m recipes.stdlib`: chats that teach ossia-stdlib, and scores on those held out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.options import ModelOption, ThreadsOption, open_llm
from ossia.errors import OssiaError
from ossia.options import LoadOptions

if TYPE_CHECKING:
    from ossia.api import LLM, Reply
    from recipes.stdlib.dialogues import Dialogue

dialogues = typer.Typer(
    name="python -m recipes.stdlib",
    help="Write dialogues to learn from, and score models on them.",
    epilog="Example: python -m recipes.stdlib write --out dialogues",
    no_args_is_help=True,
    rich_markup_mode=None,
)

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
_AT_ONCE = 16  # chats in the engine
_MOST_CALLS = 4  # in one turn
_MOST_TOKENS = 400  # in one reply


@dialogues.command(epilog="Example: python -m recipes.stdlib write --seed 0 --out dialogues")
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


@dialogues.command(
    epilog="Example: python -m recipes.stdlib score --model tuned --data dialogues/held_out.jsonl"
)
def score(
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="The held-out chats that `write` wrote.")
    ],
    model: ModelOption = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Questions of each task. [default: all]"),
    ] = None,
    threads: ThreadsOption = None,
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
    chats = list(_selected(_read(data), count))
    llm = open_llm(model, LoadOptions(threads=threads))
    if llm.chat_format.name != "harmony":
        raise OssiaError(f"the model speaks {llm.chat_format.name}, and the dialogues are harmony")
    start = time.perf_counter()
    runs = track(
        run_all(llm, chats), "answering", len(chats), console=Console(stderr=True), transient=True
    )
    results = [result for _, result in sorted(runs, key=lambda run: run[0])]
    report = summary(results) | {"seconds": round(time.perf_counter() - start, 1)}
    if wrong is not None:
        _write_lines(wrong, (json.dumps(r, ensure_ascii=False) for r in results if not r["right"]))
    print(json.dumps(report) if as_json else _table(report))


def run_all(llm: LLM, chats: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each chat and its result, as it is ready; several are in the engine at once."""
    waiting = enumerate(chats)
    running: dict[int, Iterator[dict[str, Any] | None]] = {}
    while True:
        for number, chat in islice(waiting, _AT_ONCE - len(running)):
            running[number] = _run(llm, chat)
        if not running:
            return
        for number, run in list(running.items()):
            if (result := next(run)) is not None:
                del running[number]
                yield number, result


def _run(llm: LLM, chat: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """One turn, call after call to the answer; None once each reply has begun, then the result."""
    from ossia.api import ReplyBuilder

    turn = max(n for n, message in enumerate(chat["messages"]) if message["role"] == "user") + 1
    messages, expected = chat["messages"][:turn], chat["messages"][turn:]
    well_formed, reasoning, tokens, calls = True, 0, 0, 0
    while True:
        stream = llm.stream(
            messages,
            chat.get("tools"),
            chat["reasoning_effort"],
            date=chat["date"],
            temperature=0.0,
            max_tokens=_MOST_TOKENS,
        )
        yield None
        builder = ReplyBuilder()
        for event in stream:
            builder.add(event)
        reply = builder.reply()
        well_formed &= _is_well_formed(llm, [output.token for output in stream.outputs], reply)
        reasoning += len(llm.tokenizer.encode(reply.reasoning))
        tokens += reply.completion_tokens
        messages = [*messages, reply.message()]
        calls += len(reply.tool_calls)
        if not reply.tool_calls or calls > _MOST_CALLS:
            break
        messages += [
            {
                "role": "tool",
                "tool_call_id": c.id,
                "content": _result(c.name, c.arguments, expected),
            }
            for c in reply.tool_calls
        ]
    yield {
        "task": chat["task"],
        "effort": chat["reasoning_effort"],
        "right": reply.content == expected[-1]["content"],
        "well_formed": well_formed,
        "reasoning_tokens": reasoning,
        "tokens": tokens,
        "expected": expected,
        "replied": messages[turn - 1 :],
    }


def _result(name: str, arguments: str, expected: list[dict[str, Any]]) -> str:
    """Of a tool call: what `ossia chat` would run, run; of the chat's own tools what is on file."""
    from ossia.tools import BUILT_IN, call

    if name in {tool.name for tool in BUILT_IN}:
        return call(BUILT_IN, name, arguments)
    for message, following in pairwise(expected):
        for made in message.get("tool_calls", ()):
            if made["function"] == {"name": name, "arguments": arguments}:
                return following["content"]
    return "error: nothing found"


def _is_well_formed(llm: LLM, ids: list[int], reply: Reply) -> bool:
    """Whether a reply is harmony to the letter: channels named, calls as JSON on commentary, and
    <|return|> after an answer, <|call|> after a call.
    """
    from ossia.text.chat import Role
    from ossia.text.harmony.grammar import ControlToken, HarmonyError
    from ossia.text.harmony.parse import parse

    try:
        *before, last = parse(ids, llm.tokenizer, Role.ASSISTANT)
        for called in reply.tool_calls:
            json.loads(called.arguments)
    except (HarmonyError, ValueError):
        return False
    if any(message.channel not in ("analysis", "commentary") for message in before):
        return False
    ends = {"final": ControlToken.RETURN, "commentary": ControlToken.CALL}
    is_last = ends.get(last.channel or "") is last.end  # an answer, or a call
    return is_last and ids[-1] == llm.tokenizer.control[last.end]


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The shares of right answers by task and effort, and what the efforts cost."""
    efforts = list(dict.fromkeys(result["effort"] for result in results))
    kinds = dict.fromkeys((result["task"], result["effort"]) for result in results)
    accuracy: dict[str, dict[str, float]] = {}

    def mean(key: str, task: str | None, effort: str | None) -> float:
        values = [
            result[key]
            for result in results
            if task in (None, result["task"]) and effort in (None, result["effort"])
        ]
        return round(sum(values) / len(values), 4)

    for task, effort in kinds:
        accuracy.setdefault(task, {})[effort] = mean("right", task, effort)
    return {
        "chats": len(results),
        "well_formed": mean("well_formed", None, None),
        "accuracy": accuracy,
        "mean_accuracy": {effort: mean("right", None, effort) for effort in efforts},
        "mean_reasoning_tokens": {
            effort: mean("reasoning_tokens", None, effort) for effort in efforts
        },
        "mean_tokens": {effort: mean("tokens", None, effort) for effort in efforts},
    }


def _table(report: dict[str, Any]) -> str:
    efforts = list(report["mean_accuracy"])
    rows = [*report["accuracy"].items(), ("all", report["mean_accuracy"])]
    lines = [" " * 18 + "".join(f"{effort:>8}" for effort in efforts)]
    lines += [
        f"{name:<18}" + "".join(f"{row[e]:8.0%}" if e in row else " " * 8 for e in efforts)
        for name, row in rows
    ]
    lines.append(f"well-formed {report['well_formed']:.1%} of {report['chats']:,} chats")
    return "\n".join(lines)


def _selected(chats: Iterable[dict[str, Any]], count: int | None) -> Iterator[dict[str, Any]]:
    """The first `count` of each task and effort."""
    seen: dict[tuple[str, str], int] = {}
    for chat in chats:
        kind = chat["task"], chat["reasoning_effort"]
        seen[kind] = seen.get(kind, 0) + 1
        if count is None or seen[kind] <= count:
            yield chat


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """The chats in a file, checked as `ossia finetune` checks them."""
    from ossia.train.corpus.conversations import checked
    from ossia.train.corpus.documents import json_lines

    if not file.is_file():
        raise OssiaError(f"--data {file}: no such file; `python -m recipes.stdlib write` makes one")
    empty = True
    for number, chat in json_lines(file):
        where, empty = f"{file}, line {number}", False
        checked(chat, where)
        if not all(isinstance(chat.get(key), str) for key in ("task", "reasoning_effort", "date")):
            raise OssiaError(f"{where}: a chat has task, effort and date")
        last = chat["messages"][-1]
        if last.get("tool_calls") or not isinstance(last["content"], str):
            raise OssiaError(f"{where}: does not end with the assistant's answer")
        yield chat
    if empty:
        raise OssiaError(f"--data {file}: holds no chat")


def _write_lines(file: Path, lines: Iterable[str | Dialogue]) -> int:
    number = 0
    with file.open("w", encoding="utf-8") as stream:
        for number, line in enumerate(lines, 1):
            print(line if isinstance(line, str) else line.line(), file=stream)
            if number % 1000 == 0 and sys.stderr.isatty():
                print(f"\r{file.name}: {number:,}", end="", file=sys.stderr, flush=True)
    return number
