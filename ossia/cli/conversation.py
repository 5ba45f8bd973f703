"""What is said in a chat and how it goes on: messages, slash commands, saving; not its looks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ossia.api import LLM, Finished, ReplyBuilder, Sampling, Stream
from ossia.errors import OssiaError
from ossia.system.files import write_json
from ossia.text import Event, ReasoningEffort
from ossia.text.chat import read_effort
from ossia.tools import Tool, call

_MOST_CALLS = 8  # in one turn: a model may ask for the same thing for ever
_KINDS = {
    "harmony": "harmony chat",
    "template": "chat by the model's own template",
    "plain": "no chat format, the model continues what is said as text",
}


class Conversation:
    """One conversation with a model. A turn is `ask`, `hear` for each event, `run_tools`,
    `reply_ended`; and the same again while `go_on` gives a stream.
    """

    def __init__(
        self,
        llm: LLM,
        sampling: Sampling,
        *,
        system: str | None = None,
        thinking: bool = True,
        tools: Sequence[Tool] = (),
    ) -> None:
        if tools and llm.chat_format.name == "plain":
            raise OssiaError("this model has no chat format, so it cannot call tools")
        self._llm, self._sampling = llm, sampling
        self.system, self.thinking, self.tools = system, thinking, tools
        self._turn = 0  # where the messages of this turn begin
        self._calls = 0  # in this turn
        self._results: list[str] = []  # of the reply's calls
        self.effort: ReasoningEffort | None = None
        self.messages: list[dict[str, Any]] = []
        self.ended = False
        self._reply = ReplyBuilder()
        efforts = "|".join(ReasoningEffort)
        self.commands: dict[str, tuple[str, Callable[[str], str]]] = {
            "/help": ("this list", self._help),
            "/system": ("TEXT  instructions above all turns; alone, shows them", self._system),
            "/effort": (f"{efforts}  how long gpt-oss thinks; alone, shows it", self._effort),
            "/reset": ("begin anew; instructions and effort stay", self._reset),
            "/save": ("FILE  write the conversation as JSON", self._save),
            "/exit": ("leave", self._exit),
        }  # fmt: skip

    @property
    def title(self) -> str:
        kind = _KINDS[self._llm.chat_format.name]
        tools = f", tools: {', '.join(tool.name for tool in self.tools)}" if self.tools else ""
        return f"{kind}, context {self._llm.config.context_length:,} tokens{tools}"

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
        self._turn, self._calls = len(self.messages), 0
        self.messages.append({"role": "user", "content": text})
        return self._stream()

    def run_tools(self) -> list[str]:
        """What the tools return that the reply calls; nothing without tools, or if the reply did
        not come to its end.
        """
        reply = self._reply.reply()
        if self.tools and reply.finish_reason == "tool_calls":
            self._results = [call(self.tools, c.name, c.arguments) for c in reply.tool_calls]
        return self._results

    def go_on(self) -> Stream | None:
        """What the model says to the results of its calls; None if there are none. After too many
        calls the turn is taken back (OssiaError).
        """
        if not self._results:
            return None
        self._calls += len(self._results)
        if self._calls > _MOST_CALLS:
            del self.messages[self._turn :]
            raise OssiaError(f"more than {_MOST_CALLS} calls without an answer")
        return self._stream()

    def _stream(self) -> Stream:
        self._reply, self._results = ReplyBuilder(), []
        try:
            return self._llm.stream(
                self._all_messages(),
                [tool.schema() for tool in self.tools] or None,
                reasoning_effort=self.effort,
                thinking=self.thinking,
                **self._sampling,
            )
        except OssiaError as error:
            del self.messages[self._turn :]
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
            del self.messages[self._turn :]
        else:
            self.messages.append(message)
            self.messages += [
                {"role": "tool", "tool_call_id": called.id, "name": called.name, "content": result}
                for called, result in zip(reply.tool_calls, self._results, strict=False)
            ]
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
        self.effort = read_effort(effort)

    def save(self, path: Path) -> None:
        """Write the conversation, whole or not at all."""
        record: dict[str, Any] = {"reasoning_effort": self.effort}
        if self.tools:
            record["tools"] = [tool.schema() for tool in self.tools]
        record["messages"] = self._all_messages()
        try:
            write_json(path, record)
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
        self.set_effort(argument or self.effort or ReasoningEffort.MEDIUM)
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
