"""The state of a chat: messages, tool calls and saving, but not how it looks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ossia.api import LLM, Finished, ReplyBuilder, Stream
from ossia.errors import OssiaError
from ossia.options import SamplingOptions
from ossia.system.files import json_bytes, write_output
from ossia.text import Effort, Event, UnusableFormat
from ossia.text.chat import read_effort
from ossia.text.harmony.grammar import ControlToken
from ossia.tools import Tool, call

_MOST_CALLS = 8  # in one turn: a model may repeat a call forever
_FOR_MODEL = ("/think", "/no_think")  # Qwen3's switches, which its model card has users type
_KINDS = {
    "harmony": "harmony chat",
    "base": "a base model, which knows harmony's tokens but has learned no chats",
    "template": "chat by the model's own template",
    "plain": "no chat format, the model continues the text",
}


class Conversation:
    """One conversation with a model. A turn is `ask`, `hear` for each event, `run_tools` and
    `reply_ended`, then the same for each further stream that `go_on` returns.
    """

    def __init__(
        self,
        llm: LLM,
        sampling: SamplingOptions = SamplingOptions(),
        *,
        system: str | None = None,
        thinking: bool = True,
        tools: Sequence[Tool] = (),
    ) -> None:
        if isinstance(llm.chat_format, UnusableFormat):
            raise OssiaError(str(llm.chat_format.error))
        self._llm, self.sampling = llm, sampling
        self.system, self.thinking = system, thinking
        self.tools: Sequence[Tool] = ()
        self.use_tools(tools)
        self._turn = 0  # index of the first message of this turn
        self._calls = 0  # in this turn
        self._results: list[str] = []  # of the reply's calls
        self.effort: Effort | None = None
        self.messages: list[dict[str, Any]] = []
        self._reply = ReplyBuilder()

    @property
    def title(self) -> str:
        kind = _KINDS["base" if self._is_base() else self._llm.chat_format.name]
        tools = f", tools: {', '.join(tool.name for tool in self.tools)}" if self.tools else ""
        return f"{kind}, context {self._llm.config.context_length:,} tokens{tools}"

    def _is_base(self) -> bool:
        """Whether the model's texts end, but no replies, as those of `ossia train` do, whose
        vocabulary has harmony's tokens for fine-tuning.
        """
        ends = self._llm.eos_ids
        if self._llm.chat_format.name != "harmony" or not ends:
            return False
        return self._llm.tokenizer.control[ControlToken.RETURN] not in ends

    @staticmethod
    def is_command(line: str) -> bool:
        """Whether a line that was typed is for the program, as /this; all others are turns. A path
        like /usr/bin is a turn, and so are Qwen3's /think and /no_think. `turn_of` gives their
        text.
        """
        name = re.match(r"/(?:[A-Za-z]+|\?)(?=\s|$)", line)
        return name is not None and name[0] not in _FOR_MODEL

    @staticmethod
    def turn_of(line: str) -> str:
        """The user's turn that a line means: //this stands for /this."""
        return line[1:] if re.match(r"//[A-Za-z?]", line) else line

    def ask(self, text: str) -> Stream:
        """Begin the reply to a user's turn. Raises OssiaError if the model cannot take it; the
        conversation is then unchanged.
        """
        self._turn, self._calls = len(self.messages), 0
        self.messages.append({"role": "user", "content": text})
        return self._stream()

    def run_tools(self) -> list[str]:
        """The results of the tools that the reply calls; none without tools, or if the reply did
        not complete.
        """
        reply = self._reply.reply()
        if self.tools and reply.finish_reason == "tool_calls":
            self._results = [call(self.tools, c.name, c.arguments) for c in reply.tool_calls]
        return self._results

    def go_on(self) -> Stream | None:
        """The model's next reply, to the results of its calls; None if there are none. After too
        many calls the turn is removed and OssiaError raised.
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
                **asdict(self.sampling),  # type: ignore[arg-type]
            )
        except OssiaError as error:
            del self.messages[self._turn :]
            hint = " (/clear starts over)" if self.messages else ""
            raise OssiaError(f"{error}{hint}") from error

    def hear(self, event: Event | Finished) -> None:
        """Record an event of the current reply."""
        self._reply.add(event)

    def reply_ended(self) -> str:
        """Add the reply to the conversation, and return a remark if it did not end by itself. A
        turn that was stopped before any answer is removed.
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
            return "(stopped; your turn was removed)" if unanswered else "(stopped)"
        if reply.finish_reason == "length":
            if reply.prompt_tokens + reply.completion_tokens >= context:
                hint = "; /clear starts over" if self._turn else ""  # after earlier turns
                return f"(cut off: the context of {context:,} tokens is full{hint})"
            return f"(cut off after {reply.completion_tokens:,} tokens)"
        return "(an empty answer)" if unanswered else ""

    def set_effort(self, effort: str) -> None:
        """Set the reasoning effort. Raises OssiaError if the model has none or it is unknown."""
        if self._llm.chat_format.name != "harmony":
            raise OssiaError(
                f"this model's {self._llm.chat_format.name} chat format has no reasoning effort"
            )
        self.effort = read_effort(effort, "the reasoning effort")

    def use_tools(self, tools: Sequence[Tool]) -> None:
        """Offer these tools from the next turn on. Raises OssiaError if the model cannot call
        them.
        """
        if tools and self._llm.chat_format.name == "plain":
            raise OssiaError("this model has no chat format, so it cannot call tools")
        self.tools = tools

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, as `write_output` does."""
        record: dict[str, Any] = {"reasoning_effort": self.effort}
        if self.tools:
            record["tools"] = [tool.schema() for tool in self.tools]
        record["messages"] = self._all_messages()
        write_output(path, json_bytes(record))

    def _all_messages(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.messages
