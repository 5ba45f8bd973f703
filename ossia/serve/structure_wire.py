"""What clients send to have an answer take a form, or to have functions called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ossia.serve.wire import Given, On


class TextFormat(Given):
    type: Literal["text"]


class JsonObjectFormat(Given):
    type: Literal["json_object"]


class JsonSchema(Given):
    """strict: a keyword of the schema that cannot be enforced is refused, not ignored."""

    name: str
    description: str | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema")] = Field(default_factory=dict)
    strict: bool = False


class JsonSchemaFormat(Given):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StructuredOutputs(Given):
    """vLLM's parameter: exactly one of these. json: a schema, or the text of one. grammar: Lark."""

    json_schema: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    json_object: On | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None


class FunctionName(Given):
    name: str


class FunctionChoice(Given):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Given):
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Field(min_length=1)]


class AllowedToolsChoice(Given):
    """The functions that may be called; the model still sees all that are offered."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolMode = Literal["none", "auto", "required"]
ToolChoice = ToolMode | Annotated[FunctionChoice | AllowedToolsChoice, Field(discriminator="type")]


class Structured(Given):
    """The form of the text: by OpenAI's parameter or by vLLM's."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    def structure(self) -> dict[str, Any]:
        """The parameters by the names that an LLM knows."""
        return {
            "response_format": as_sent(self.response_format),
            "structured_outputs": as_sent(self.structured_outputs),
        }


def as_sent(value: Given | str | None) -> Any:
    """The value as the client sent it."""
    return (
        value.model_dump(by_alias=True, exclude_unset=True) if isinstance(value, Given) else value
    )


def later_choice(value: Given | str) -> Any:
    """The choice for the replies that follow calls of the server's own tools: what had to be called
    has been.
    """
    choice = as_sent(value)
    if isinstance(choice, str):
        return "none" if choice == "none" else "auto"
    allowed = choice.get("allowed_tools", choice)
    if "mode" not in allowed:
        return "auto"
    allowed["mode"] = "auto"
    return choice
