"""What is said in a chat and how it goes on: messages, slash commands, saving; not its looks."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ossia.api import LLM, Finished, ReplyBuilder, Sampling, Stream
from ossia.errors import OssiaError
from ossia.text import Event

EFFORTS = ("low", "medium", "high")
DEFAULT_EFFORT = "medium"  # harmony's
_KINDS = {
    "harmony": "harmony chat",
    "template": "chat by the model's own template",
    "plain": "no chat format, the model continues what is said as text",
}


class Conversation:
    """One conversation with a model. Turns are `ask`, `hear` for each event, `reply_ended`."""

    def __init__(
        self, llm: LLM, sampling: Sampling, *, system: str | None = None, thinking: bool = True
    ) -> None:
        self._llm, self._sampling = llm, sampling
        self.system, self.thinking = system, thinking
        self.effort: str | None = None
        self.messages: list[dict[str, Any]] = []
        self.ended = False
        self._reply = ReplyBuilder()
        self.commands: dict[str, tuple[str, Callable[[str], str]]] = {
            "/help": ("this list", self._help),
            "/system": ("TEXT  instructions above all turns; alone, shows them", self._system),
            "/effort": ("low|medium|high  how long gpt-oss thinks; alone, shows it", self._effort),
            "/reset": ("begin anew; instructions and effort stay", self._reset),
            "/save": ("FILE  write the conversation as JSON", self._save),
            "/exit": ("leave", self._exit),
        }  # fmt: skip

    @property
    def title(self) -> str:
        kind = _KINDS[self._llm.chat_format.name]
        return f"{kind}, context {self._llm.config.context_length:,} tokens"

    @staticmethod
    def is_command(line: str) -> bool:
        """Whether the line's first word looks like /this; a path like /usr/bin does not."""
        return re.match(r"/[A-Za-z]+(\s|$)", line) is not None

    def command(self, line: str) -> str:
        """Do what a slash command says, and return the words to show; OssiaError if it cannot."""
        name, *rest = line.split(maxsplit=1)
        name, argument = name.lower(), rest[0] if rest else ""
        if name not in self.commands:
            raise OssiaError(f"unknown command {name}; there are {', '.join(self.commands)}")
        return self.commands[name][1](argument.strip())

    def ask(self, text: str) -> Stream:
        """Begin the reply to a user's turn. If the model cannot take it (OssiaError), the
        conversation stays as it was.
        """
        self._reply = ReplyBuilder()
        self.messages.append({"role": "user", "content": text})
        try:
            return self._llm.stream(
                self._all_messages(),
                reasoning_effort=self.effort,
                thinking=self.thinking,
                **self._sampling,
            )
        except OssiaError as error:
            self.messages.pop()
            hint = "; /reset begins anew" if self.messages else ""
            raise OssiaError(f"{error}{hint}") from error

    def hear(self, event: Event | Finished) -> None:
        self._reply.add(event)

    def reply_ended(self) -> str:
        """Keep what came of the reply, and say if its end was not its own. A turn that got no
        answer is taken back.
        """
        reply = self._reply.reply()
        message = reply.message()
        unanswered = not message["content"] and not reply.tool_calls
        if unanswered and reply.finish_reason == "interrupted":
            self.messages.pop()
        else:
            self.messages.append(message)
        context = self._llm.config.context_length
        if reply.finish_reason == "interrupted":
            return "(stopped; your turn is taken back)" if unanswered else "(stopped)"
        if reply.finish_reason == "length":
            if reply.prompt_tokens + reply.completion_tokens >= context:
                return f"(cut off: the context of {context:,} tokens is full; /reset begins anew)"
            return f"(cut off after {reply.completion_tokens:,} tokens)"
        return "(an empty answer)" if unanswered else ""

    def set_effort(self, effort: str) -> None:
        if self._llm.chat_format.name != "harmony":
            raise OssiaError(
                f"this model's {self._llm.chat_format.name} chat format has no reasoning effort"
            )
        if effort not in EFFORTS:
            raise OssiaError(f"the reasoning effort is low, medium or high, not {effort!r}")
        self.effort = effort

    def save(self, path: Path) -> None:
        """Write the conversation, whole or not at all."""
        record = {"reasoning_effort": self.effort, "messages": self._all_messages()}
        content = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
        try:
            descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with open(descriptor, "w", encoding="utf-8") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(draft, path)
            except BaseException:
                os.unlink(draft)
                raise
        except OSError as error:
            raise OssiaError(f"cannot write {path}: {error.strerror}") from error

    def _all_messages(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.messages

    def _help(self, argument: str) -> str:
        return "\n".join(f"{name:<9}{text}" for name, (text, _) in self.commands.items())

    def _system(self, argument: str) -> str:
        if argument:
            self.system = argument
        return f"instructions: {self.system or 'none'}"

    def _effort(self, argument: str) -> str:
        self.set_effort(argument or self.effort or DEFAULT_EFFORT)
        return f"reasoning effort: {self.effort}"

    def _reset(self, argument: str) -> str:
        self.messages.clear()
        return "a new conversation"

    def _save(self, argument: str) -> str:
        if not argument:
            raise OssiaError("/save needs a file name: /save talk.json")
        path = Path(argument).expanduser()
        check_writable(path)
        self.save(path)
        return f"saved to {path}"

    def _exit(self, argument: str) -> str:
        self.ended = True
        return "bye"


def check_writable(path: Path) -> None:
    """Raise OssiaError now if a file could not be written there later."""
    if path.is_dir():
        raise OssiaError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise OssiaError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise OssiaError(f"cannot write {path}: the folder {path.parent} is not writable")
