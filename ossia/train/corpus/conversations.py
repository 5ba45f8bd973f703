"""Conversations to train on: read from JSON lines, checked, and rendered as at inference. The
targets are the tokens that the model generates.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossia.errors import OssiaError
from ossia.text.chat import Chat, ChatFormat, ChatMessage, Role
from ossia.train.corpus import shapes
from ossia.train.corpus.documents import json_lines, json_list
from ossia.train.loss import IGNORED

_NOTES = (Role.SYSTEM, Role.DEVELOPER)  # allowed anywhere before a reply


@dataclass(frozen=True)
class Conversation:
    """One checked line of a file; `where` names it in errors. `learned` are the indices of the
    replies to learn, None for all.
    """

    where: str
    chat: Chat
    learned: frozenset[int] | None = None


@dataclass(frozen=True)
class Example:
    """A text to train on: int64 inputs and targets (length,). Targets are one token ahead, and
    IGNORED if the next token is part of a prompt.
    """

    where: str
    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def learned(self) -> int:
        """The number of targets."""
        return int((self.targets != IGNORED).sum())

    def truncated(self, length: int) -> Example:
        """The first `length` tokens."""
        return Example(self.where, self.inputs[:length], self.targets[:length])


def read(path: str, option: str) -> list[Conversation]:
    """The conversations in a file of JSON lines, or of one JSON list, each an object with
    `messages`, and optionally `tools`, `reasoning_effort` and `date`, in the Chat Completions
    format, or in one of the shapes that `shapes` reads.

    Raises OssiaError that names the file and the line, or `option` if there is no such file.
    """
    file = Path(path)
    if file.is_dir():
        raise OssiaError(f"{option} {path}: is a folder; give a file of JSON lines")
    if not file.is_file():
        raise OssiaError(f"{option} {path}: no such file")
    try:
        read = [checked(value, where) for where, value in _values(file)]
    except OSError as error:
        raise OssiaError(f"{file}: {error.strerror}") from error
    if not read:
        raise OssiaError(f"{option} {path}: holds no conversation")
    return read


def _values(file: Path) -> Iterator[tuple[str, Any]]:
    """Each conversation, and where it stands."""
    listed = json_list(file)
    if listed is not None:
        yield from ((f"{file}, item {n}", value) for n, value in enumerate(listed, start=1))
    else:
        yield from ((f"{file}, line {n}", value) for n, value in json_lines(file))


def digest(path: str) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(value: Any, where: str) -> Conversation:
    """The conversation in a line. Raises OssiaError that begins with `where` if it is not one."""
    try:
        line = shapes.read(value)
        chat = Chat.of(
            line.messages,
            tools=line.tools,
            reasoning_effort=value.get("reasoning_effort"),
            date=value.get("date"),
        )
        _check(chat.messages)
    except OssiaError as error:
        raise OssiaError(f"{where}: {error}") from error
    return Conversation(where, chat, line.learned)


def _check(messages: Sequence[ChatMessage]) -> None:
    """Raise OssiaError unless replies answer users or tools, tools answer calls, and the last
    message is a reply.
    """
    speaker = ""  # of the last message other than a note
    unanswered: list[str | None] = []  # ids of calls without a result yet
    for n, message in enumerate(messages):
        where = f"messages[{n}]"
        if message.role == "tool":
            _answer(message, unanswered, where)
        elif unanswered:
            raise OssiaError(f"{where}: a call before it has no result from a tool")
        elif message.role == "assistant":
            if speaker in ("", "assistant"):
                after = "begins the conversation" if not speaker else "follows another reply"
                raise OssiaError(f"{where}: roles out of order: an assistant's message {after}")
            unanswered = _calls(message, where)
        if message.role not in _NOTES:
            speaker = message.role
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else None
        raise OssiaError(f"messages: must end with an assistant's reply, not {last}")


def _calls(message: ChatMessage, where: str) -> list[str | None]:
    """The ids of a reply's calls. Raises OssiaError for an invalid call."""
    if not message.content and not message.tool_calls:
        raise OssiaError(f"{where}: a reply needs content or tool calls")
    for n, call in enumerate(message.tool_calls):
        try:
            arguments = json.loads(call.arguments)
        except (ValueError, RecursionError) as error:
            raise OssiaError(f"{where}.tool_calls[{n}]: arguments not JSON ({error})") from error
        if not isinstance(arguments, dict):
            raise OssiaError(f"{where}.tool_calls[{n}]: arguments not a JSON object")
    return [call.id for call in message.tool_calls]


def _answer(message: ChatMessage, unanswered: list[str | None], where: str) -> None:
    """Remove the call that a tool's result answers: the one with its id, or the oldest if either id
    is absent.
    """
    if not unanswered:
        raise OssiaError(f"{where}: a tool's result without a call before it")
    if message.tool_call_id is None or set(unanswered) == {None}:
        unanswered.pop(0)
    elif message.tool_call_id in unanswered:
        unanswered.remove(message.tool_call_id)
    else:
        raise OssiaError(f"{where}: no call before it has the id {message.tool_call_id!r}")


def render(conversation: Conversation, chat_format: ChatFormat, date: str) -> list[Example]:
    """The training texts of a conversation: each reply after exactly the prompt that it has at
    inference.

    Formats rewrite earlier turns (reasoning is dropped, replies end with another id), so a reply
    may need a separate text. A prompt that only continues the last text shares it. `date`
    (YYYY-MM-DD) is the default date of a conversation.
    """
    chat = conversation.chat
    if chat.date is None:
        chat = replace(chat, date=datetime.date.fromisoformat(date))
    try:
        turns = chat_format.render_turns(chat, conversation.learned)
    except OssiaError as error:
        raise OssiaError(f"{conversation.where}: {error}") from error
    examples: list[tuple[list[int], list[int]]] = []
    for prompt, reply in turns:
        inputs = prompt + reply[:-1]
        targets = [IGNORED] * (len(prompt) - 1) + reply
        last_inputs, last_targets = examples[-1] if examples else ([], [])
        if last_inputs and last_inputs == prompt[:-1][: len(last_inputs)]:
            examples.pop()
            targets[: len(last_targets)] = last_targets
        examples.append((inputs, targets))
    return [Example(conversation.where, *map(torch.tensor, both)) for both in examples]


def split(
    conversations: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Conversations to train on, and a held-out `share`, at least one, drawn by `seed`."""
    count = max(1, round(share * len(conversations)))
    if count >= len(conversations):
        raise OssiaError(
            f"{len(conversations)} conversations are too few to hold {share:g} of them out: give "
            "--eval-data, or --eval-share 0"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(conversations), generator=generator).tolist()
    held_out = set(order[:count])
    return (
        [c for n, c in enumerate(conversations) if n not in held_out],
        [c for n, c in enumerate(conversations) if n in held_out],
    )


def check_ids(examples: Sequence[Example], vocab_size: int) -> None:
    """Raise OssiaError for a token without an embedding in the model."""
    for example in examples:
        largest = int(max(example.inputs.max(), example.targets.max()))
        if largest >= vocab_size:
            raise OssiaError(
                f"{example.where}: the tokenizer gives the id {largest}, outside the model's "
                f"vocabulary of {vocab_size}: they do not belong together"
            )
