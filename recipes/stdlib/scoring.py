"""Scores on held-out chats: how often a model answers as on file, and how long it reasons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossia.errors import OssiaError

if TYPE_CHECKING:
    from ossia.api import LLM, Reply

_MOST_CALLS = 4  # in one turn
_MOST_TOKENS = 400  # in one reply


@dataclass(frozen=True)
class Result:
    """What a model made of the last turn of a chat."""

    task: str
    effort: str
    position: int  # of the turn in the chat, from 1
    right: bool  # whether its answer equals the one on file
    well_formed: bool  # whether each of its replies is harmony to the letter
    reasoning_tokens: int
    tokens: int
    expected: list[dict[str, Any]]  # messages
    replied: list[dict[str, Any]]  # messages, the user's first


def select(chats: Iterable[dict[str, Any]], count: int | None) -> Iterator[dict[str, Any]]:
    """The first `count` of each task and effort."""
    seen: dict[tuple[str, str], int] = {}
    for chat in chats:
        kind = chat["task"], chat["reasoning_effort"]
        seen[kind] = seen.get(kind, 0) + 1
        if count is None or seen[kind] <= count:
            yield chat


def read(file: Path) -> Iterator[dict[str, Any]]:
    """The chats in a file, checked as `ossia finetune` checks them.

    Raises OssiaError, with file and line, for a file without chats and for a chat that cannot be
    scored.
    """
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


def answer(llm: LLM, chats: Iterable[dict[str, Any]]) -> Iterator[Result]:
    """The result of each chat. They are answered one at a time: in a batch sums are taken in
    another order, and the scores of two runs would differ by a few answers.
    """
    return (_run(llm, chat) for chat in chats)


def _run(llm: LLM, chat: dict[str, Any]) -> Result:
    """One turn, call after call to the answer."""
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
    return Result(
        task=chat["task"],
        effort=chat["reasoning_effort"],
        position=sum(message["role"] == "user" for message in messages),
        right=reply.content == expected[-1]["content"],
        well_formed=well_formed,
        reasoning_tokens=reasoning,
        tokens=tokens,
        expected=expected,
        replied=messages[turn - 1 :],
    )


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


def summarize(results: list[Result]) -> dict[str, Any]:
    """The shares of right answers by task and effort and by position in the chat and effort, and
    what each effort costs in tokens.
    """
    efforts: dict[str, list[Result]] = {}
    tasks: dict[str, dict[str, list[Result]]] = {}
    positions: dict[int, dict[str, list[Result]]] = {}
    for result in results:
        efforts.setdefault(result.effort, []).append(result)
        tasks.setdefault(result.task, {}).setdefault(result.effort, []).append(result)
        positions.setdefault(result.position, {}).setdefault(result.effort, []).append(result)
    return {
        "chats": len(results),
        "well_formed": _mean("well_formed", results),
        "accuracy": {task: _means("right", by_effort) for task, by_effort in tasks.items()},
        "accuracy_by_position": {str(n): _means("right", positions[n]) for n in sorted(positions)},
        "mean_accuracy": _means("right", efforts),
        "mean_reasoning_tokens": _means("reasoning_tokens", efforts),
        "mean_tokens": _means("tokens", efforts),
    }


def _means(field: str, by_effort: dict[str, list[Result]]) -> dict[str, float]:
    return {effort: _mean(field, results) for effort, results in by_effort.items()}


def _mean(field: str, results: list[Result]) -> float:
    return round(sum(getattr(result, field) for result in results) / len(results), 4)
