"""The objects that a client of Messages sends."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from ossia.serve.wire import MAX_STOPS, Given, Off, Wire, kind

LEAST_BUDGET = 1024


class CacheControl(Given):
    """A label: prefixes are cached without being told to."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class TextBlock(Given):
    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(Given):
    """signature: not checked, for the text itself is all there is to it."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class DirectCaller(Given):
    type: Literal["direct"]


class ToolUseBlock(Given):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: DirectCaller | None = None
    cache_control: CacheControl | None = None


class ToolResultBlock(Given):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] = ""
    is_error: bool = False
    cache_control: CacheControl | None = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag("type=text")] | Annotated[ToolResultBlock, Tag("type=tool_result")],
    kind("type", "text", "tool_result"),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("type=text")]
    | Annotated[ThinkingBlock, Tag("type=thinking")]
    | Annotated[ToolUseBlock, Tag("type=tool_use")],
    kind("type", "text", "thinking", "tool_use"),
]


class UserMessage(Given):
    role: Literal["user"]
    content: str | list[UserBlock]


class AssistantMessage(Given):
    role: Literal["assistant"]
    content: str | list[AssistantBlock]


class SystemMessage(Given):
    role: Literal["system"]
    content: str | list[TextBlock]


Message = Annotated[
    Annotated[UserMessage, Tag("role=user")]
    | Annotated[AssistantMessage, Tag("role=assistant")]
    | Annotated[SystemMessage, Tag("role=system")],
    kind("role", "user", "assistant", "system"),
]


class ToolDefinition(Given):
    """A function of the client's. eager_input_streaming is accepted either way: the input of a
    call comes once it is whole, so that it is JSON whatever the model wrote.
    """

    type: Literal["custom"] = "custom"
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool = False
    eager_input_streaming: bool | None = None
    defer_loading: Off = False
    allowed_callers: list[Literal["direct"]] | None = None
    cache_control: CacheControl | None = None


class Parallel(Given):
    disable_parallel_tool_use: bool = False


class AutoChoice(Parallel):
    type: Literal["auto"]


class AnyChoice(Parallel):
    type: Literal["any"]


class NamedChoice(Parallel):
    type: Literal["tool"]
    name: str


class NoChoice(Parallel):
    type: Literal["none"]


Choice = Annotated[
    Annotated[AutoChoice, Tag("type=auto")]
    | Annotated[AnyChoice, Tag("type=any")]
    | Annotated[NamedChoice, Tag("type=tool")]
    | Annotated[NoChoice, Tag("type=none")],
    kind("type", "auto", "any", "tool", "none"),
]


class Enabled(Given):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=LEAST_BUDGET)]
    display: Literal["summarized"] | None = None


class Adaptive(Given):
    type: Literal["adaptive"]
    display: Literal["summarized"] | None = None


class Disabled(Given):
    type: Literal["disabled"]


Thinking = Annotated[
    Annotated[Enabled, Tag("type=enabled")]
    | Annotated[Adaptive, Tag("type=adaptive")]
    | Annotated[Disabled, Tag("type=disabled")],
    kind("type", "enabled", "adaptive", "disabled"),
]


class JsonFormat(Given):
    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Given):
    """How much effort an answer may take, of which the two highest are high, and its form."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Metadata(Given):
    user_id: str | None = None


class CountRequest(Given):
    """A conversation, and what the next message is to be like."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | list[TextBlock] = ""
    tools: list[ToolDefinition] = Field(default_factory=list)
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    # Labels, which change nothing.
    cache_control: CacheControl | None = None

    @model_validator(mode="after")
    def _is_answered(self) -> CountRequest:
        if self.messages[-1].role == "assistant":
            raise ValueError(
                "messages end with the assistant's: a message cannot be continued (prefilled)"
            )
        return self

    @property
    def shows_thinking(self) -> bool:
        return self.thinking is not None and self.thinking.type != "disabled"


class MessagesRequest(CountRequest):
    """A request for the next message of a conversation."""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool = False
    stop_sequences: Annotated[list[str], Field(max_length=MAX_STOPS)] = Field(default_factory=list)
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    # Only the values that ask for nothing more than the server does.
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
    thread: dict[str, Any] | None = None  # which no server holds but Anthropic's
    # A label, which changes nothing.
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _thinks_within_the_answer(self) -> MessagesRequest:
        if isinstance(self.thinking, Enabled) and self.thinking.budget_tokens >= self.max_tokens:
            raise ValueError("thinking.budget_tokens must be less than max_tokens")
        return self


class AnthropicCode(Wire):
    error_code: str


class AnthropicErrorDetails(Wire):
    type: str
    message: str
    details: AnthropicCode | None = None


class AnthropicError(Wire):
    type: Literal["error"]
    error: AnthropicErrorDetails
