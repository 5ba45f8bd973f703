"""The objects of Chat Completions, as clients send them and as the server answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ossia.serve.chat_hosted import HostedCall, PartOfHostedCall
from ossia.serve.structure_wire import Structured, ToolChoice
from ossia.serve.wire import Given, Metadata, Off, Sampled, Usage, Wire

MAX_TOP_LOGPROBS = 20


class TextPart(Given):
    type: Literal["text"]
    text: str


class CalledFunction(Given):
    name: str
    arguments: str


class Call(Given):
    id: str | None = None
    index: int | None = None  # some clients send the parts of a stream back as they came
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Given):
    """A message of the conversation. An assistant's may carry the reasoning of its reply under any
    of the names that clients use, and the calls that the server ran for it.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    server_tool_calls: list[HostedCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    provider_specific_fields: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_the_server_wrote_it(cls, data: Any) -> Any:
        """Clients add things such as annotations: [] to a message of the server's. LiteLLM puts the
        fields that it does not know into an object.
        """
        if not isinstance(data, dict):
            return data
        apart = data.get("provider_specific_fields")
        if isinstance(apart, dict):
            data = apart | {k: v for k, v in data.items() if k != "provider_specific_fields"}
        return {key: value for key, value in data.items() if value is not None and value != []}


class Function(Given):
    """strict: the arguments of each call follow the parameters."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Tool(Given):
    type: Literal["function"]
    function: Function


class TemplateSettings(Given):
    """enable_thinking: false is an answer without reasoning, from models that can."""

    enable_thinking: bool = True


class ChatRequest(Sampled, Structured):
    """A request for the next message of a conversation. chat_template_kwargs, structured_outputs
    and xray are beyond OpenAI's API.

    xray: chunks also carry what happens inside the model at each token of the answer, which it
    reads a second time for it.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    reasoning_effort: Literal["none", "low", "medium", "high"] | None = None
    chat_template_kwargs: TemplateSettings = TemplateSettings()
    xray: bool = False
    # Only the values that ask for nothing more than the server does.
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Off = False
    verbosity: Literal["medium"] | None = None
    # Labels, which change nothing.
    metadata: Metadata | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _hang_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens are two names of one; send one")
        if self.xray and not (self.stream and self.n == 1):
            raise ValueError("xray is only for stream: true, and for one answer")
        return self


class TopLogprob(Wire):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ContentLogprobs(Wire):
    """Of the tokens of the content: not of the reasoning, nor of calls."""

    content: list[TokenLogprob]
    refusal: None = None


class ReplyCall(Wire):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Reply(Wire):
    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ReplyCall] | None = None
    server_tool_calls: list[HostedCall] | None = None
    refusal: None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class Choice(Wire):
    index: int
    message: Reply
    finish_reason: FinishReason
    logprobs: ContentLogprobs | None = None


class ChatCompletion(Wire):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class PartOfFunction(Wire):
    name: str | None = None
    arguments: str


class PartOfCall(Wire):
    """The first part of a call has its id, type and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: PartOfFunction


class Delta(Wire):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[PartOfCall] | None = None
    server_tool_calls: list[PartOfHostedCall] | None = None


class PartOfChoice(Wire):
    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: ContentLogprobs | None


class SeenToken(Wire):
    """What happens inside the model at a token of the answer.

    logprob: of the token; entropy: of what was expected in its place, in nats; rank: the token's
    place in it, 1 the likeliest. attention: shares that sum to 1, as means over heads and layers:
    on the sinks, the first token, the token itself, the previous one, others within the window, and
    those beyond it. experts: those of each layer that has any, likeliest first.
    """

    token: str
    logprob: float | None
    entropy: float | None
    rank: int | None
    attention: list[float | None]
    experts: list[list[int]]


class ChatCompletionChunk(Wire):
    """What a stream sends for each part of the answer. xray: the next of the answer's tokens that
    have been looked at, in chunks without choices.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[PartOfChoice]
    xray: list[SeenToken] | None = None
    usage: Usage | None = None
