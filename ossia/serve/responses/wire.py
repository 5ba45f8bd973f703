"""The objects that a client of Responses sends."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, model_validator

from ossia.serve.chat_wire import MAX_TOP_LOGPROBS, Function
from ossia.serve.structure_wire import JsonObjectFormat, JsonSchema, TextFormat, ToolMode
from ossia.serve.wire import Given, Metadata, Off, kind


class Text(Given):
    """A part of a message. What a server added to the text when it sent it is no part of it."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[Any] = Field(default_factory=list)


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
    name: str | None = None
    namespace: str | None = None


class ReasoningText(Given):
    type: Literal["reasoning_text"]
    text: str


class SummaryText(Given):
    type: Literal["summary_text"]
    text: str


class ReasoningItem(Given):
    """encrypted_content: this server's, which is read instead of the content."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[SummaryText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


class ItemReference(Given):
    """An item of a response that was kept."""

    type: Literal["item_reference"]
    id: str


class ErrorText(Given):
    type: Literal["text"]
    text: str


class McpError(Given):
    """What a call gave that failed, as MCP writes it."""

    type: Literal["mcp_tool_execution_error"]
    content: list[ErrorText]


class McpCallItem(Given):
    """A call of a tool of the server's, as it was sent."""

    type: Literal["mcp_call"]
    id: str
    server_label: str
    name: str
    arguments: str
    output: str | None = None
    error: McpError | None = None
    approval_request_id: str | None = None
    status: str | None = None


class Logs(Given):
    type: Literal["logs"]
    logs: str


class CodeItem(Given):
    """Code that the server ran, as it was sent."""

    type: Literal["code_interpreter_call"]
    id: str
    container_id: str
    code: str | None = None
    outputs: list[Logs] = Field(default_factory=list)
    status: str | None = None


class ListToolsItem(Given):
    """The tools that the server offered, which it knows better than the client."""

    type: Literal["mcp_list_tools"]
    id: str
    server_label: str
    tools: list[dict[str, Any]]
    error: str | None = None


_KINDS = (
    *("message", "function_call", "function_call_output", "reasoning", "item_reference"),
    *("mcp_call", "code_interpreter_call", "mcp_list_tools"),
)

Item = Annotated[
    Annotated[MessageItem, Tag("type=message")]
    | Annotated[CallItem, Tag("type=function_call")]
    | Annotated[CallOutputItem, Tag("type=function_call_output")]
    | Annotated[ReasoningItem, Tag("type=reasoning")]
    | Annotated[ItemReference, Tag("type=item_reference")]
    | Annotated[McpCallItem, Tag("type=mcp_call")]
    | Annotated[CodeItem, Tag("type=code_interpreter_call")]
    | Annotated[ListToolsItem, Tag("type=mcp_list_tools")],
    kind("type", *_KINDS, default="message"),
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
    """What some clients always send, with any settings. The server cannot search: the model is not
    offered it.
    """

    model_config = ConfigDict(extra="allow")

    type: Literal["web_search"]


class CodeInterpreterTool(Given):
    """The server's own tool, with any settings: it is offered anyway, if the server has it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["code_interpreter"]


Tool = FunctionTool | NamespaceTool | WebSearchTool | CodeInterpreterTool


class NamedTool(Given):
    type: Literal["function"]
    name: str


class AllowedTools(Given):
    """The functions that may be called; the model still sees all that are offered."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class Reasoning(Given):
    """summary: auto, which is none: the reasoning itself is in the items."""

    effort: Literal["none", "low", "medium", "high"] | None = None
    summary: Literal["auto"] | None = None


class JsonSchemaFormat(JsonSchema):
    """Chat Completions' schema, beside its type."""

    type: Literal["json_schema"]


class TextSettings(Given):
    format: (
        Annotated[
            TextFormat | JsonObjectFormat | JsonSchemaFormat,
            Field(discriminator="type"),
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Given):
    include_obfuscation: Off = False


Includable = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "code_interpreter_call.outputs",  # which are always there
]


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
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: ToolMode | Annotated[NamedTool | AllowedTools, Field(discriminator="type")] = (
        "auto"
    )
    parallel_tool_calls: bool = True
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    reasoning: Reasoning = Reasoning()
    include: list[Includable] = Field(default_factory=list)
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    background: bool = False
    # Only the values that ask for nothing more than the server does.
    text: TextSettings = TextSettings()
    stream_options: ResponseStreamOptions | None = None
    service_tier: Literal["auto", "default"] | None = None
    # Labels, which change nothing.
    metadata: Metadata = Field(default_factory=dict)
    client_metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _hang_together(self) -> ResponseRequest:
        if self.background and not self.store:
            raise ValueError("background needs store: true, for the response is fetched later")
        if self.top_logprobs is not None and "message.output_text.logprobs" not in self.include:
            raise ValueError("top_logprobs needs include: ['message.output_text.logprobs']")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        return self
