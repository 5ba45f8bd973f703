"""Structured output and forced calls over HTTP: a model that babbles keeps to what is asked."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from ossia.serve.structure_wire import AllowedToolsChoice, FunctionChoice, later_choice
from ossia.text.constrain.compile import _LIMITS

jsonschema = pytest.importorskip("jsonschema")
openai = pytest.importorskip("openai")
pytest.importorskip("llguidance")


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=5)
    size: Literal["small", "large"]


SCHEMA = City.model_json_schema()
STRICT = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
FLAT = {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}
FUNCTION = {"name": "visit", "parameters": SCHEMA, "strict": True}
TOOLS = [
    {"type": "function", "function": FUNCTION},
    {"type": "function", "function": {"name": "go"}},
]
NAMED = {"type": "function", "function": {"name": "visit"}}
MOST = 1500


@pytest.fixture
def babbling(serve, same_draws):
    return serve(babbling=True)


@pytest.mark.parametrize("temperature", [1, 2])
def test_the_client_s_model_of_an_answer_is_filled(babbling, temperature):
    completion = babbling.client.chat.completions.parse(
        model="tiny",
        messages=[{"role": "user", "content": "?"}],
        response_format=City,
        temperature=temperature,
        max_tokens=MOST,
        seed=1,
    )
    (choice,) = completion.choices
    assert isinstance(choice.message.parsed, City)
    assert choice.finish_reason == "stop"


def test_a_streamed_answer_is_the_same(babbling):
    asked: dict[str, Any] = {"response_format": STRICT, "seed": 2, "max_tokens": MOST}
    whole = babbling.chat(**asked).choices[0].message.content
    chunks = [*babbling.chat(stream=True, **asked)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    jsonschema.validate(json.loads(whole), SCHEMA)


@pytest.mark.parametrize("tool_choice", ["required", NAMED])
def test_a_call_that_must_be_made_is_made(babbling, tool_choice):
    asked = {"tools": TOOLS, "tool_choice": tool_choice, "seed": 3, "max_tokens": MOST}
    (choice,) = babbling.chat(**asked).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    streamed = ""
    for chunk in babbling.chat(stream=True, **asked):
        for part in chunk.choices[0].delta.tool_calls or ():
            streamed += part.function.arguments
    assert streamed == call.function.arguments
    schema = SCHEMA if call.function.name == "visit" else {"type": "object", "maxProperties": 0}
    jsonschema.validate(json.loads(streamed), schema)
    if tool_choice is NAMED:
        assert call.function.name == "visit"


STRUCTURES = {
    "choice": (["yes", "no"], r"yes|no"),
    "regex": (r"\w{2}-[0-9]", r"\w{2}-[0-9]"),
    "grammar": ('start: "a" ("," "b"){1,3}', r"a(,b){1,3}"),
    "json": ({"enum": [1, 2]}, r"[12]"),
    "json_object": (True, r"\{(.|\n)*\}"),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures_of_vllm_hold_for_chats_and_texts(babbling, kind):
    value, pattern = STRUCTURES[kind]
    extra = {"structured_outputs": {kind: value}}
    (answer,) = babbling.chat(extra_body=extra, max_tokens=MOST, seed=1).choices
    assert answer.finish_reason == "stop"
    assert re.fullmatch(pattern, answer.message.content)
    asked = {"model": "tiny", "prompt": ["x", "y"], "max_tokens": MOST, "seed": 1}
    texts = babbling.client.completions.create(extra_body=extra, **asked).choices
    assert all(re.fullmatch(pattern, text.text) for text in texts)
    streams = babbling.client.completions.create(extra_body=extra, stream=True, **asked)
    joined = {0: "", 1: ""}
    for chunk in streams:
        joined[chunk.choices[0].index] += chunk.choices[0].text
    assert [*joined.values()] == [text.text for text in texts]


def test_a_cut_answer_says_so(babbling):
    extra = {"structured_outputs": {"regex": "[ab]{90}"}}
    completion = babbling.client.completions.create(
        model="tiny", prompt="x", max_tokens=9, extra_body=extra
    )
    assert completion.choices[0].finish_reason == "length"
    assert re.fullmatch("[ab]{9}", completion.choices[0].text)


def test_choices_of_one_request_each_hold(babbling):
    choices = babbling.chat(response_format=STRICT, n=3, max_tokens=MOST, seed=4).choices
    assert len({choice.message.content for choice in choices}) > 1
    for choice in choices:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_responses_hold_their_format_and_their_calls(babbling):
    create = babbling.client.responses.create
    asked: dict[str, Any] = {"model": "tiny", "input": "?", "max_output_tokens": MOST}
    response = create(text={"format": FLAT}, **asked)
    assert response.status == "completed"
    assert response.text.format.type == "json_schema"
    jsonschema.validate(json.loads(response.output_text), SCHEMA)
    tools = [{"type": "function", **FUNCTION}, {"type": "function", "name": "go", "strict": False}]
    one = {"type": "function", "name": "visit"}
    several = {"type": "allowed_tools", "mode": "required", "tools": [one]}
    for tool_choice in ("required", one, several):
        call = create(tools=tools, tool_choice=tool_choice, **asked).output[-1]
        assert call.type == "function_call"
        schema = SCHEMA if call.name == "visit" else {"type": "object"}
        jsonschema.validate(json.loads(call.arguments), schema)
        assert tool_choice == "required" or call.name == "visit"


def test_streamed_responses_hold_them_too(babbling):
    *_, last = babbling.client.responses.create(
        model="tiny", input="?", text={"format": FLAT}, stream=True, max_output_tokens=MOST
    )
    assert last.type == "response.completed"
    jsonschema.validate(json.loads(last.response.output_text), SCHEMA)


DEEP = '{"properties":{"a":' * 200 + "{}" + "}}" * 200
CHAT, TEXT, RESPONSE = "chat/completions", "completions", "responses"
QUESTIONS: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": [{"role": "user", "content": "?"}]},
    TEXT: {"model": "tiny", "prompt": "?"},
    RESPONSE: {"model": "tiny", "input": "?"},
}
NOT = {"name": "n", "strict": True, "schema": {"properties": {"a": {"not": {}}}}}
LIST = {"type": "function", "function": {**FUNCTION, "parameters": {"type": "array"}}}
LOST = {"type": "function", "function": {"name": "x"}}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "response_format.json_schema.schema.properties.a": (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": NOT}},
    ),
    "structured_outputs.regex": (CHAT, {"structured_outputs": {"regex": "(" * 999}}),
    "structured_outputs.grammar": (TEXT, {"structured_outputs": {"grammar": "start: b"}}),
    "structured_outputs.json": (TEXT, {"structured_outputs": {"json": DEEP}}),
    "structured_outputs": (TEXT, {"structured_outputs": {}}),
    "tool_choice": (CHAT, {"tools": TOOLS, "tool_choice": LOST}),
    "tools[0].function.parameters": (CHAT, {"tools": [LIST]}),
    "text.format.schema": (RESPONSE, {"text": {"format": {**FLAT, "schema": {"$ref": "#"}}}}),
}


@pytest.mark.parametrize("param", BODIES)
def test_what_cannot_be_enforced_is_refused_by_name(babbling, param):
    path, body = BODIES[param]
    status, answer = babbling.post(f"/v1/{path}", {**QUESTIONS[path], **body})
    assert (status, answer["error"]["param"]) == (400, param)
    assert babbling.llm.stats().unfinished == 0


def test_what_had_to_be_called_is_free_after_calls_of_the_server_s_tools():
    assert [later_choice(mode) for mode in ("none", "auto", "required")] == ["none", "auto", "auto"]
    assert later_choice(FunctionChoice.model_validate(NAMED)) == "auto"
    allowed = {"mode": "required", "tools": [NAMED]}
    choice = AllowedToolsChoice.model_validate({"type": "allowed_tools", "allowed_tools": allowed})
    assert later_choice(choice) == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [NAMED]},
    }


AMBIGUOUS = 'start: text "."\ntext: LETTER | text text\nLETTER: /[a-z]/'


def test_one_that_waits_too_long_for_others_grammars_may_come_again(babbling, monkeypatch):
    monkeypatch.setattr("ossia.text.constrain.compile._SECONDS", 0.01)
    body = {"model": "tiny", "prompt": "?", "structured_outputs": {"regex": "a"}}
    with babbling.llm._grammars._turn:
        status, answer = babbling.post("/v1/completions", body)
    assert (status, answer["error"]["code"]) == (429, "busy")


@pytest.mark.usefixtures("same_draws")
def test_a_grammar_that_gets_beyond_its_limits_midway_is_the_client_s_fault(serve, monkeypatch):
    monkeypatch.setitem(_LIMITS, "max_items_in_row", 30)  # some 14 letters
    served = serve(babbling=True)
    (end,) = served.llm.tokenizer.encode(".")
    form = {"structured_outputs": {"grammar": AMBIGUOUS}}
    asked: dict[str, Any] = {"extra_body": form, "logit_bias": {end: -100}}
    with pytest.raises(openai.BadRequestError, match="row has 31 items") as error:
        served.chat(**asked)
    assert error.value.code == "constraint_failed"
    chunks = []
    with pytest.raises(openai.APIError, match="row has 31 items"):
        chunks.extend(served.chat(stream=True, **asked))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert re.fullmatch("[a-z]{10,20}", text)
    assert served.chat(response_format=STRICT, seed=1, max_tokens=MOST).choices[0].message.content
