"""What Chat Completions and Completions share on the wire. An absent parameter and null are the
same; what a model does not name is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ossia.api import Sampling
from ossia.api.reply import Finished

MAX_CHOICES = 128


class Wire(BaseModel):
    """An object of the API."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Given(Wire):
    """An object that a client sends."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema, by which null too stands for what may be absent."""
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        for name, value in own.get("properties", {}).items():
            if name not in own.get("required", ()) and not _takes_null(value):
                shown = {key: value.pop(key) for key in ("default", "title") if key in value}
                own["properties"][name] = {"anyOf": [value, {"type": "null"}], **shown}
        if own.get("additionalProperties") is False:
            own["additionalProperties"] = {"type": "null"}
        return schema


def _takes_null(schema: dict[str, Any]) -> bool:
    return {"type": "null"} in schema.get("anyOf", ()) or schema == {}


def kind(field: str, *values: str, default: str | None = None) -> Discriminator:
    """Chooses the member of a union by the value of a field: that with the Tag "field=value". Such
    a tag is no name, so that it is left out of the path of an error.
    """

    def tag(value: Any) -> str | None:
        found = value.get(field) if isinstance(value, dict) else getattr(value, field, None)
        found = default if found is None and isinstance(value, dict) else found
        return f"{field}={found}" if found in values else None

    message = f"{field} must be one of {', '.join(values)}"
    return Discriminator(tag, custom_error_type="kind", custom_error_message=message)


def _boolean(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("must be a boolean")
    return value


# To a Literal alone, 0 and 1 would be equal.
Off = Annotated[Literal[False], BeforeValidator(_boolean)]
On = Annotated[Literal[True], BeforeValidator(_boolean)]


class StreamOptions(Given):
    """include_usage: a last chunk, without choices, says what was used."""

    include_usage: bool = False
    include_obfuscation: Off = False


class Sampled(Given):
    """How tokens are drawn, and how many answers. top_k, min_p, repetition_penalty and ignore_eos
    are beyond OpenAI's API.
    """

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    # Keys of JSON are strings.
    logit_bias: (
        Annotated[
            dict[
                Annotated[int, Field(ge=0, strict=False)],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(strict=False),
        ]
        | None
    ) = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool = False
    user: str | None = None  # a label, which changes nothing

    @model_validator(mode="after")
    def _usage_is_streamed(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        return self

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """The parameters by the names that an LLM knows."""
        return {
            "max_tokens": max_tokens,
            "logprobs": logprobs,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "stop": self.stop,
            "logit_bias": self.logit_bias,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "ignore_eos": self.ignore_eos,
        }

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class PromptDetails(Wire):
    cached_tokens: int


class CompletionDetails(Wire):
    reasoning_tokens: int


class Usage(Wire):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails

    @classmethod
    def of(cls, finished: list[Finished], choices: int) -> Usage:
        """The tokens of prompts that were each answered `choices` times, one after the other."""
        prompts = finished[::choices]
        read = sum(end.prompt_tokens for end in prompts)
        written = sum(end.completion_tokens for end in finished)
        return cls(
            prompt_tokens=read,
            completion_tokens=written,
            total_tokens=read + written,
            prompt_tokens_details=PromptDetails(
                cached_tokens=sum(end.cached_tokens for end in prompts)
            ),
            completion_tokens_details=CompletionDetails(
                reasoning_tokens=sum(end.reasoning_tokens for end in finished)
            ),
        )


class ErrorDetails(Wire):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Wire):
    error: ErrorDetails
