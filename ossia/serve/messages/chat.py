"""A request of Messages as the conversation and the settings that an LLM takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ossia.api import LLM, Ask
from ossia.serve.messages.wire import (
    AnyChoice,
    AssistantMessage,
    CountRequest,
    Enabled,
    MessagesRequest,
    NamedChoice,
    NoChoice,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

# The most thinking tokens of a budget that asks for an effort; more ask for a high one.
LOW_BUDGET, MEDIUM_BUDGET = 4095, 16383


def prepared(llm: LLM, body: CountRequest) -> Ask:
    """What a request asks of the engine. Raises OssiaError for what the model's chat format cannot
    express.
    """
    tools = [_function(tool) for tool in body.tools]
    sampling: dict[str, Any] = {}
    if isinstance(body, MessagesRequest):
        sampling = {
            "max_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_k": body.top_k,
            "top_p": body.top_p,
            "stop": body.stop_sequences,
        }
    return llm.prepare(
        [*messages(body)],
        tools or None,
        _effort(body, has_efforts=llm.chat_format.name == "harmony"),
        body.thinking is None or body.thinking.type != "disabled",
        tool_choice=_choice(body) if tools else None,
        parallel_tool_calls=not (body.tool_choice and body.tool_choice.disable_parallel_tool_use),
        response_format=_format(body),
        **sampling,
    )


def messages(body: CountRequest) -> Iterator[dict[str, Any]]:
    """The conversation in Chat Completions' form. Results of tools stand before the words that came
    with them.
    """
    if body.system:
        yield {"role": "system", "content": _text(body.system, "\n\n")}
    for message in body.messages:
        if isinstance(message.content, str):
            yield {"role": message.role, "content": message.content}
        elif isinstance(message, AssistantMessage):
            yield _assistant(message)
        elif isinstance(message, UserMessage):
            results = [b for b in message.content if isinstance(b, ToolResultBlock)]
            for block in results:
                text = ("Error: " if block.is_error else "") + _text(block.content)
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
            words = [block for block in message.content if isinstance(block, TextBlock)]
            if words or not results:
                yield {"role": "user", "content": _text(words)}
        else:
            yield {"role": "system", "content": _text(message.content, "\n\n")}


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    blocks = message.content
    assert not isinstance(blocks, str)
    said: dict[str, Any] = {"role": "assistant"}
    said["content"] = _text([block for block in blocks if isinstance(block, TextBlock)])
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    if thoughts:
        said["reasoning"] = "".join(thoughts)
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {
                "name": block.name,
                "arguments": json.dumps(block.input, ensure_ascii=False),
            },
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    return said | ({"tool_calls": calls} if calls else {})


def _text(content: str | Sequence[TextBlock], between: str = "") -> str:
    return content if isinstance(content, str) else between.join(block.text for block in content)


def _function(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema, "strict": tool.strict}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _choice(body: CountRequest) -> str | dict[str, Any]:
    match body.tool_choice:
        case AnyChoice():
            return "required"
        case NamedChoice(name=name):
            return {"type": "function", "function": {"name": name}}
        case NoChoice():
            return "none"
    return "auto"


def _format(body: CountRequest) -> dict[str, Any] | None:
    if (asked := body.output_config.format) is None:
        return None
    schema = {"name": "answer", "schema": asked.json_schema, "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _effort(body: CountRequest, has_efforts: bool) -> str | None:
    """The effort that is named, or that a budget comes to of a model that has efforts."""
    effort = body.output_config.effort
    if effort is not None:
        return effort if effort in ("low", "medium") else "high"
    if not isinstance(body.thinking, Enabled) or not has_efforts:
        return None
    if body.thinking.budget_tokens <= LOW_BUDGET:
        return "low"
    return "medium" if body.thinking.budget_tokens <= MEDIUM_BUDGET else "high"
