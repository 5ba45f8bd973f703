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
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ossia.api import Sampling
from ossia.api.reply import Finished

MAX_CHOICES = 128
MAX_LABELS = 16  # of metadata, as in OpenAI's API
MAX_STOPS = 128  # each is looked for at every token, in the thread that serves everybody


class Wire(BaseModel):
    """An object of the API."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _fail_fast(schema: Any) -> None:
    """Have the validation of each list in a core schema end with its first wrong element."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for key, value in schema.items():
            if key not in ("default", "metadata"):
                _fail_fast(value)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)


class Given(Wire):
    """An object that a client sends.

    Of a list's wrong elements only the first is reported, and of several unknown keys one: reports
    of the millions that a body can hold would take gigabytes, and minutes in which nobody is
    served.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {key: value for key, value in data.items() if value is not None}
        if len(given) > len(cls.model_fields) and cls.model_config.get("extra") == "forbid":
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in [key for key in given if key not in known][1:]:
                del given[key]
        return given

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema

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


# Keys of JSON are strings.
_Biases = Annotated[
    dict[
        Annotated[int, Field(ge=0, strict=False)],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    Field(strict=False),
]
_biases = TypeAdapter(_Biases, config=ConfigDict(strict=True))


def _or_the_first_wrong(value: Any) -> Any:
    """Biases; if one is wrong, that one alone, so that it is the only one reported (`Given`)."""
    for key, bias in value.items() if isinstance(value, dict) else ():
        try:
            _biases.validate_python({key: bias})
        except ValidationError:
            return {key: bias}
    return value


def _few(value: Any) -> Any:
    """Entries, counted before each is looked at."""
    if isinstance(value, dict) and len(value) > MAX_LABELS:
        raise ValueError(f"must have at most {MAX_LABELS} entries")
    return value


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_LABELS),
    BeforeValidator(_few),
]


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
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    logit_bias: Annotated[_Biases | None, BeforeValidator(_or_the_first_wrong)] = None
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
