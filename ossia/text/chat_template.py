"""A chat template, and the forms in which it reads the parts of a message.

Templates agree on no form: some print a call's arguments as they are given, some walk through an
object, some take content as a list of parts. Nothing says which, so each is found by rendering a
short chat and looking for its words in the text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ossia.errors import OssiaError
from ossia.text.jinja import Template

# Words of the probes: no template has them, changes their case or escapes them.
_QUESTION, _ANSWER, _THOUGHT, _NEXT = "question17", "answer17", "thought17", "next17"
_LONG = 1.0  # seconds for a probe; published templates take milliseconds
_OBJECT = {"key17": "value17"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "function17",
        "description": "None.",
        "parameters": {"type": "object", "properties": {"key17": {"type": "string"}}},
    },
}

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template with its special tokens. Raises OssiaError that names `source` if it
    cannot be compiled.
    """

    def __init__(self, text: str, source: str, special_tokens: Mapping[str, str]):
        self.text, self.source = text, source
        self._template = Template(text, source)
        self._special_tokens = dict(special_tokens)
        self._is_slow = False

    def fill(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The text, with the same variables as from transformers. Raises OssiaError if the template
        fails or refuses the messages.
        """
        if self._is_slow:
            raise OssiaError(f"{self.source}: takes too long even for a chat of three messages")
        return self._template.fill(
            {
                **self._special_tokens,
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **variables,
            }
        )

    @cached_property
    def closings(self) -> tuple[str, str]:
        """What follows a reply that ends a chat, and what stands between a reply and the user's
        next turn.
        """
        chat = [self._said("user", _QUESTION), self._said("assistant", _ANSWER)]
        last = self._probe(chat).rpartition(_ANSWER)[2]
        inner = self._probe([*chat, self._said("user", _NEXT)]).rpartition(_ANSWER)[2]
        return last, inner.partition(_NEXT)[0]

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it reads content only as a list of parts."""
        text = self._probe([{"role": "user", "content": _QUESTION}])
        listed = self._probe([{"role": "user", "content": parts(_QUESTION)}])
        return _QUESTION in listed and _QUESTION not in text

    @cached_property
    def takes_objects(self) -> bool:
        """Whether it writes a call's arguments from an object, not as Python prints one."""
        text = self._call(_OBJECT)
        return "key17" in text and "value17" in text and str(_OBJECT) not in text

    @cached_property
    def takes_strings(self) -> bool:
        """Whether it writes a call's arguments as they are given in a string."""
        return json.dumps(_OBJECT) in self._call(json.dumps(_OBJECT))

    @cached_property
    def takes_reasoning(self) -> bool:
        """Whether it writes the reasoning of a reply that ends a chat."""
        reply = {**self._said("assistant", _ANSWER), **reasoned(_THOUGHT)}
        return _THOUGHT in self._probe([self._said("user", _QUESTION), reply])

    @cached_property
    def splits_reasoning(self) -> bool:
        """Whether it finds reasoning in a reply's content, and leaves it out of earlier replies."""
        reply = self._said("assistant", f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWER}")
        asked = self._said("user", _QUESTION)
        last = self._probe([reply]) + self._probe([asked, reply])
        return _THOUGHT in last and _THOUGHT not in self._probe([asked, reply, asked])

    def _call(self, arguments: Any) -> str:
        function = {"name": "function17", "arguments": arguments}
        call = {"id": "call17abc", "type": "function", "function": function}
        reply = {**self._said("assistant", ""), "tool_calls": [call]}
        result = {**self._said("tool", "1"), "tool_call_id": "call17abc"}
        return self._probe([self._said("user", _QUESTION), reply, result], [_TOOL])

    def _said(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": parts(text) if self.takes_parts else text}

    def _probe(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """The text, '' if the template refuses."""
        begun = time.thread_time()
        try:
            return self.fill(messages, tools)
        except OssiaError:
            return ""
        finally:
            self._is_slow |= time.thread_time() - begun > _LONG


def parts(text: str) -> list[dict[str, str]]:
    """A message's content as a list."""
    return [{"type": "text", "text": text}]


def reasoned(thought: Any) -> dict[str, Any]:
    """A reply's reasoning under the names that transformers gives it."""
    return {"reasoning_content": thought, "thinking": thought}
