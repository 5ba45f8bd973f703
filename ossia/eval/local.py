"""A model of this machine as one that answers questions: a checkpoint, in the engine of an LLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ossia.api import LLM, Finished, ReplyBuilder
from ossia.api.arguments import ChatOptions
from ossia.errors import OssiaError
from ossia.eval.answers import Asked, Call, Message, Turn, Unanswered, Usage

NO_THINKING = "none"  # the effort at which models that can answer without reasoning do


class LocalModel:
    """An LLM that is this model's alone. sampling: keyword arguments of `LLM.stream`."""

    def __init__(self, llm: LLM, sampling: dict[str, Any]) -> None:
        self._llm, self._sampling = llm, sampling

    def turn(self, asked: Asked, messages: Sequence[Message]) -> Turn:
        """See Model."""
        sampling = dict(self._sampling)
        if asked.max_tokens is not None:
            sampling["max_tokens"] = asked.max_tokens
        if sampling.get("seed") is not None:
            sampling["seed"] += asked.repeat
        builder, finished = ReplyBuilder(), Finished("interrupted", 0, 0)
        try:
            for event in self._llm.stream(
                messages,
                asked.tools or None,
                None if asked.effort == NO_THINKING else asked.effort,
                asked.effort != NO_THINKING,
                asked.date,
                **cast(ChatOptions, sampling),
            ):
                builder.add(event)
                if isinstance(event, Finished):
                    finished = event
        except OssiaError as error:  # such as a prompt beyond the context
            raise Unanswered(str(error)) from error
        reply = builder.reply()
        usage = Usage(
            finished.prompt_tokens,
            finished.cached_tokens,
            finished.completion_tokens,
            finished.reasoning_tokens,
        )
        calls = tuple(Call(call.id or "", call.name, call.arguments) for call in reply.tool_calls)
        return Turn(
            reply.message(),
            reply.content,
            reply.reasoning,
            reply.finish_reason,
            usage,
            calls,
            finished.malformed,
        )

    def close(self) -> None:
        """See Model."""
        self._llm.close()


def check_effort(llm: LLM, effort: str | None) -> None:
    """Raise OssiaError for an effort that the model's chat format has no word for, so that two
    efforts are never the same prompt.
    """
    kind = llm.chat_format.name
    if effort is None or (kind == "harmony" and effort in ("low", "medium", "high")):
        return
    if kind == "template" and effort == NO_THINKING:
        return
    has = {"harmony": "low, medium and high", "template": f"{NO_THINKING}, for no reasoning"}
    raise OssiaError(
        f"--effort {effort}: this model's {kind} chat format has {has.get(kind, 'no efforts')}"
    )
