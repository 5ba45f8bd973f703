"""`ossia/PATH` as a model of inspect-ai: `inspect eval task.py --model ossia/ossia-stdlib`."""

# pyright: reportMissingImports=false
# (inspect_ai is an extra.)

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    modelapi,
)
from inspect_ai.tool import ToolCall, ToolChoice, ToolFunction, ToolInfo

from ossia.api import LLM, Finished, Reply, ReplyBuilder
from ossia.api.arguments import ChatOptions
from ossia.eval.local import NO_THINKING

_REASONS: dict[str, StopReason] = {
    "stop": "stop",
    "length": "max_tokens",
    "tool_calls": "tool_calls",
}
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed")
_PENALTIES = ("frequency_penalty", "presence_penalty", "logit_bias")


@modelapi(name="ossia")
class OssiaAPI(ModelAPI):
    """A checkpoint folder, a hub name, or the model in the package, in this process.

    options: fields of `LoadOptions` and `EngineOptions`, given as -M dtype=float32. Raises
    OssiaError for what cannot be loaded.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - the base class's own default
        **options: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self._llm = LLM(model_name, **options)

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002 - named by the base class
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """See ModelAPI."""
        options = {key: getattr(config, key) for key in (*_SAMPLING, *_PENALTIES)}
        options |= {"stop": config.stop_seqs, "parallel_tool_calls": config.parallel_tool_calls}
        if tools:
            options["tool_choice"] = _choice(tool_choice)
        if (schema := config.response_schema) is not None:
            described = schema.json_schema.model_dump(exclude_none=True)
            form = {"name": schema.name, "schema": described, "strict": bool(schema.strict)}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        effort = config.reasoning_effort
        builder, finished = ReplyBuilder(), Finished("interrupted", 0, 0)
        async for event in self._llm.astream(
            [_message(message) for message in input],
            [_tool(tool) for tool in tools] or None,
            None if effort == NO_THINKING else effort,
            effort != NO_THINKING,
            **cast(ChatOptions, {k: v for k, v in options.items() if v is not None}),
        ):
            builder.add(event)
            if isinstance(event, Finished):
                finished = event
        return self._output(builder.reply(), finished)

    def max_connections(self) -> int:
        """As many as run in one batch."""
        return self._llm.about.max_batch if self._llm.about else 16

    def close(self) -> None:
        """Free the model's memory."""
        self._llm.close()

    def _output(self, reply: Reply, finished: Finished) -> ModelOutput:
        content: list[Content] = []
        if reply.reasoning:
            content.append(ContentReasoning(reasoning=reply.reasoning))
        shown = "\n\n".join(part for part in (reply.preamble, reply.content) if part)
        content.append(ContentText(text=shown))
        message = ChatMessageAssistant(
            content=content,
            tool_calls=[_call(c.id or "", c.name, c.arguments) for c in reply.tool_calls] or None,
            model=self.model_name,
            source="generate",
        )
        reason = _REASONS.get(reply.finish_reason, "unknown")
        usage = ModelUsage(
            input_tokens=finished.prompt_tokens - finished.cached_tokens,
            input_tokens_cache_read=finished.cached_tokens,
            output_tokens=finished.completion_tokens,
            reasoning_tokens=finished.reasoning_tokens,
            total_tokens=finished.prompt_tokens + finished.completion_tokens,
        )
        choice = ChatCompletionChoice(message=message, stop_reason=reason)
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage)


def _message(message: ChatMessage) -> dict[str, Any]:
    """A message in the form of Chat Completions."""
    found: dict[str, Any] = {"role": message.role, "content": message.text}
    if isinstance(message, ChatMessageAssistant):
        reasoning = _reasoning(message.content)
        if reasoning:
            found["reasoning"] = reasoning
        if message.tool_calls:
            found["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function, "arguments": json.dumps(call.arguments)},
                }
                for call in message.tool_calls
            ]
    elif isinstance(message, ChatMessageTool):
        found |= {"tool_call_id": message.tool_call_id, "name": message.function}
        if message.error is not None:
            found["content"] = f"error: {message.error.message}"
    return found


def _reasoning(content: str | Sequence[Content]) -> str:
    parts = [] if isinstance(content, str) else content
    return "\n".join(part.reasoning for part in parts if isinstance(part, ContentReasoning))


def _tool(tool: ToolInfo) -> dict[str, Any]:
    parameters = tool.parameters.model_dump(exclude_none=True)
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> str | dict[str, Any]:
    if isinstance(choice, ToolFunction):
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice == "any" else choice


def _call(id: str, name: str, arguments: str) -> ToolCall:
    """A call with its arguments read; one that cannot be read says so, which the model is told."""
    try:
        values = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        return ToolCall(id, name, {}, parse_error=f"the arguments are not JSON: {error}")
    if not isinstance(values, dict):
        return ToolCall(id, name, {}, parse_error="the arguments are not an object")
    return ToolCall(id, name, values)
