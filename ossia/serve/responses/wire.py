"""The objects that a client of Responses sends."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from ossia.serve.chat_wire import Function, TextFormat
from ossia.serve.wire import Given


class Text(Given):
    """A part of a message. What clients add to a part that the server sent is allowed, empty."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    logprobs: list[Any] = Field(default_factory=list, max_length=0)


Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Given):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Text]
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Given):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    namespace: str | None = None


class CallOutputItem(Given):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Text]
    id: str | None = None
    status: Status | None = None


class ReasoningText(Given):
    type: Literal["reasoning_text"]
    text: str


class SummaryText(Given):
    type: Literal["summary_text"]
    text: str


class ReasoningItem(Given):
    """encrypted_content is another server's: only this one's own text, in content, can be read."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[SummaryText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


ITEMS = {
    "message": "MessageItem",
    "function_call": "CallItem",
    "function_call_output": "CallOutputItem",
    "reasoning": "ReasoningItem",
}


def _kind(item: Any) -> str | None:
    """The class that reads an item; one without a type is a message."""
    if isinstance(item, Given):
        return type(item).__name__
    return ITEMS.get(item.get("type") or "message") if isinstance(item, dict) else None


Item = Annotated[
    Annotated[MessageItem, Tag("MessageItem")]
    | Annotated[CallItem, Tag("CallItem")]
    | Annotated[CallOutputItem, Tag("CallOutputItem")]
    | Annotated[ReasoningItem, Tag("ReasoningItem")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message=f"the type of an item must be one of {', '.join(ITEMS)}",
    ),
]


class FunctionTool(Function):
    """Chat Completions' function, beside its type."""

    type: Literal["function"]


class NamespaceTool(Given):
    """Functions under a common name, which their calls carry."""

    type: Literal["namespace"]
    name: str
    description: str | None = None
    tools: list[FunctionTool]


class WebSearchTool(Given):
    """What some clients always send. The server cannot search: the model is not offered it."""

    type: Literal["web_search"]
    external_web_access: bool | None = None


class Reasoning(Given):
    """summary: auto, which is none: the reasoning itself is in the items."""

    effort: Literal["none", "low", "medium", "high"] | None = None
    summary: Literal["auto"] | None = None


class TextSettings(Given):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(Given):
    """A request for a response to items, after those of an earlier one."""

    model: str
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool = False
    store: bool = True
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: list[FunctionTool | NamespaceTool | WebSearchTool] = Field(default_factory=list)
    tool_choice: Literal["none", "auto"] = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning = Reasoning()
    # Only the values that ask for nothing more than the server does.
    text: TextSettings = TextSettings()
    include: list[Literal["reasoning.encrypted_content"]] = Field(default_factory=list)
    truncation: Literal["disabled"] = "disabled"
    background: Literal[False] = False
    service_tier: Literal["auto", "default"] | None = None
    # Labels, which change nothing.
    metadata: dict[str, str] = Field(default_factory=dict)
    client_metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _calls_cannot_be_forced(cls, value: Any) -> Any:
        if value == "required" or isinstance(value, dict):
            raise ValueError("a call cannot be enforced; use auto, and check the reply")
        return value

    def functions(self) -> list[FunctionTool]:
        """The functions that the model is offered, those of namespaces among them."""
        found: list[FunctionTool] = []
        for tool in self.tools:
            if isinstance(tool, FunctionTool):
                found.append(tool)
            elif isinstance(tool, NamespaceTool):
                found += tool.tools
        return found

    def namespaces(self) -> dict[str, str]:
        """The namespace of each function that has one."""
        spaces = [tool for tool in self.tools if isinstance(tool, NamespaceTool)]
        return {function.name: space.name for space in spaces for function in space.tools}
