"""Replies under a grammar: what is written at random is well formed, and is what was asked for."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from typing import Any

import pytest

from ossia.errors import OssiaError
from ossia.text import Chat, Grammars, Tokenizer, load_format, load_tokenizer
from ossia.text.chat import Role
from ossia.text.constrain import read_structured_outputs
from ossia.text.constrain.compile import GrammarConstraint
from ossia.text.constrain.grammar import plain_grammar
from ossia.text.harmony.messages import ToolNamespace
from ossia.text.harmony.parse import parse
from ossia.text.template import TemplateFormat
from tests.babble import write
from tests.scripted import VOCAB_SIZE
from tests.text.replies import read

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
COUNT = {"type": "array", "items": {"enum": [1, 2, 3]}, "maxItems": 3}


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


STRICT = {"type": "json_schema", "json_schema": {"name": "n", "schema": COUNT, "strict": True}}
TOOLS = [tool("weather", CITY, strict=True), tool("now"), tool("loose", {"type": "object"})]
HELLO = [{"role": "user", "content": "Hi"}]
ALLOWED = {
    "type": "allowed_tools",
    "mode": "required",
    "tools": [{"type": "function", "name": "now"}, {"type": "function", "name": "weather"}],
}
NAMED = {"type": "function", "function": {"name": "weather"}}

# What is asked, and which functions may be called: None if the reply may be an answer as well.
ASKED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a schema": ({"response_format": STRICT}, set()),
    "an object": ({"response_format": {"type": "json_object"}}, set()),
    "a call": ({"tools": TOOLS, "tool_choice": "required"}, {"weather", "now", "loose"}),
    "that call": ({"tools": TOOLS, "tool_choice": NAMED}, {"weather"}),
    "one of those calls": ({"tools": TOOLS, "tool_choice": ALLOWED}, {"weather", "now"}),
    "no call": ({"tools": TOOLS, "tool_choice": "none"}, set()),
    "strict calls": ({"tools": TOOLS}, {"weather", "now", "loose"}),
    "one call": ({"tools": TOOLS, "parallel_tool_calls": False}, {"weather", "now", "loose"}),
    "a schema or calls": ({"tools": TOOLS, "response_format": STRICT}, {"weather", "now", "loose"}),
    "a choice": ({"structured_outputs": {"choice": ["yes", "no", "é\n\"'/"]}}, set()),
    "a regex": ({"structured_outputs": {"regex": r"[ab]{1,3}/\d?"}}, set()),
    "a grammar": ({"structured_outputs": {"grammar": 'start: A (" " A)*\nA: /[x-z]/'}}, set()),
}


def check_reply(parts: list[tuple[str, str]], asked: str) -> None:
    """What a whole reply says, by channel and call, is what was asked for."""
    settings, callees = ASKED[asked]
    chat = Chat.of(HELLO, **settings)
    calls = [(what.removeprefix("call "), text) for what, text in parts if what.startswith("call ")]
    answer = "".join(text for what, text in parts if what == "final")
    assert {name for name, _ in calls} <= callees
    if chat.must_call:
        assert calls
        assert not answer
    if not chat.parallel_tool_calls:
        assert len(calls) <= 1
    for name, arguments in calls:
        schema = {"weather": CITY, "loose": {"type": "object"}, "now": {"maxProperties": 0}}
        if name != "now" or chat.must_call:
            jsonschema.validate(json.loads(arguments), schema[name])
        assert isinstance(json.loads(arguments), dict)
    if not calls:
        check_answer(answer, chat)


def check_answer(answer: str, chat: Chat) -> None:
    structure = chat.structure
    match structure and str(structure.kind):
        case "json":
            assert structure is not None
            jsonschema.validate(json.loads(answer), structure.value)
        case "choice":
            assert structure is not None
            assert answer in structure.value
        case "regex":
            assert re.fullmatch(r"[ab]{1,3}/\d?", answer)
        case "grammar":
            assert re.fullmatch(r"[x-z]( [x-z])*", answer)


# ------------------------------------------------------------------ harmony


@pytest.fixture(scope="module")
def harmony(gpt_oss_folder, gpt_oss_tokenizer):
    chat_format = load_format(gpt_oss_folder, gpt_oss_tokenizer)
    return chat_format, gpt_oss_tokenizer, Grammars(gpt_oss_tokenizer, 201_088)


@pytest.mark.parametrize("asked", ASKED)
def test_harmony_is_well_formed_and_as_asked(asked: str, harmony, reference) -> None:
    openai_harmony = pytest.importorskip("openai_harmony")
    chat_format, tokenizer, grammars = harmony
    chat = Chat.of(HELLO, **ASKED[asked][0])
    grammar = chat_format.grammar(chat, chat_format.render(chat))
    make, whole = grammars.constraint(grammar), 0
    for seed in range(6):
        ids = write(make(), tokenizer, 201_088, seed, 120)
        parser = chat_format.parser()
        parts = read(parser, ids)
        assert not parser.malformed or ids[-1] not in chat_format.stop_ids
        if ids[-1] in chat_format.stop_ids:
            whole += 1
            check_reply(parts, asked)
            called = any(what.startswith("call ") for what, _ in parts)
            assert called or chat.structure is None or "preamble" not in dict(parts)
            messages = parse(ids, tokenizer, Role.ASSISTANT)
            theirs = reference.parse_messages_from_completion_tokens(
                ids, openai_harmony.Role.ASSISTANT, strict=True
            )
            assert [m.channel for m in theirs] == [m.channel for m in messages]
            assert [m.recipient for m in theirs] == [m.recipient for m in messages]
    assert whole >= 2


@pytest.mark.parametrize("tool_choice", ["auto", "required", "none", NAMED])
def test_built_in_tools_are_called_within_the_reasoning(tool_choice: Any, harmony) -> None:
    chat_format, tokenizer, grammars = harmony
    python = ToolNamespace("python", "Code.")
    chat = Chat.of(HELLO, tools=TOOLS, tool_choice=tool_choice, built_in=[python])
    call = "<|channel|>analysis to=python code<|message|>print(1)<|call|>"
    constraint = grammars.constraint(chat_format.grammar(chat, []))()
    if tool_choice in ("auto", "required"):
        constraint.accept(tokenizer.encode_control(call))
        return
    with pytest.raises(OssiaError):
        constraint.accept(tokenizer.encode_control(call))


def test_harmony_with_nothing_to_hold_has_no_grammar(harmony) -> None:
    chat_format, _, _ = harmony
    nothing: list[Any] = [{}, {"tools": [tool("now")]}, {"response_format": {"type": "text"}}]
    for settings in nothing:
        assert chat_format.grammar(Chat.of(HELLO, **settings), []) is None


def test_a_name_that_no_header_can_hold_is_refused(harmony) -> None:
    chat = Chat.of(HELLO, tools=[tool("a b", CITY, strict=True)])
    with pytest.raises(OssiaError, match=r"tools\[0\]\.function\.name: 'a b'"):
        harmony[0].grammar(chat, [])


# ------------------------------------------------------------------ templates


@pytest.fixture(scope="module")
def qwen3(qwen3_folder, qwen3_tokenizer):
    chat_format = load_format(qwen3_folder, qwen3_tokenizer)
    return chat_format, qwen3_tokenizer, Grammars(qwen3_tokenizer, 151_936)


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("asked", ASKED)
def test_tags_are_well_formed_and_as_asked(asked: str, thinking: bool, qwen3) -> None:
    chat_format, tokenizer, grammars = qwen3
    chat = Chat.of(HELLO, thinking=thinking, **ASKED[asked][0])
    prompt = chat_format.render(chat)
    make, whole, thought = grammars.constraint(chat_format.grammar(chat, prompt)), 0, 0
    for seed in range(6):
        ids = write(make(), tokenizer, 151_936, seed, 120)
        parser = chat_format.parser(prompt, chat.offered_tools)
        parts = read(parser, ids)
        thought += any(what == "reasoning" for what, _ in parts)
        if ids[-1] in chat_format.stop_ids:
            whole += 1
            assert not parser.malformed
            check_reply(parts, asked)
    assert whole >= 2
    assert bool(thought) is thinking


def test_reasoning_that_the_prompt_began_must_end_before_the_answer(qwen3) -> None:
    chat_format, tokenizer, grammars = qwen3
    chat = Chat.of(HELLO, response_format=STRICT)
    prompt = [*chat_format.render(chat), tokenizer.control["<think>"], *tokenizer.encode("\n")]
    constraint = grammars.constraint(chat_format.grammar(chat, prompt))()
    thought = tokenizer.encode("So [1]")
    with pytest.raises(OssiaError):
        constraint.copy().accept([*thought, tokenizer.control["<think>"]])
    answer = [*thought, tokenizer.control["</think>"], *tokenizer.encode("\n\n[1]")]
    constraint.accept([*answer, tokenizer.control["<|im_end|>"]])


def test_a_vocabulary_without_tags_has_no_calls_to_enforce(bytes_folder) -> None:
    tokenizer = load_tokenizer(bytes_folder)
    chat_format = TemplateFormat("{{ messages[0].content }}", tokenizer, stop_ids=[257])
    chat = Chat.of(HELLO, tools=TOOLS)
    with pytest.raises(OssiaError, match=r"tools\[0\]\.function: .*no calls to enforce"):
        chat_format.grammar(chat, [])


# What Qwen3-Coder's form can hold, and what it cannot.
TYPED = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["a b", "null", "1"]},
        "count": {"type": "integer", "minimum": -5, "maximum": 30},
        "on": {"type": "boolean"},
        "list": {"type": "array", "items": {"enum": [1, "x"]}, "maxItems": 3},
    },
    "required": ["kind", "count", "list"],
    "additionalProperties": False,
}


def coder(tokenizer: Tokenizer) -> TemplateFormat:
    template = "{% if tools %}<function={% endif %}{{ messages[0].content }}"
    return TemplateFormat(template, tokenizer, stop_ids=[tokenizer.control["<|im_end|>"]])


def test_calls_in_qwen3_coder_s_tags_are_as_asked(qwen3) -> None:
    _, tokenizer, grammars = qwen3
    chat_format, called = coder(tokenizer), 0
    chat = Chat.of(HELLO, tools=[tool("f", TYPED, strict=True)], tool_choice="required")
    make = grammars.constraint(chat_format.grammar(chat, []))
    for seed in range(6):
        ids = write(make(), tokenizer, 151_936, seed, 300)
        if ids[-1] in chat_format.stop_ids:
            parts = read(chat_format.parser([], chat.offered_tools), ids)
            calls = [json.loads(text) for what, text in parts if what == "call f"]
            assert len(calls) == len(parts) > 0
            for arguments in calls:
                jsonschema.validate(arguments, TYPED)
            called += len(calls)
    assert called


def test_a_text_in_tags_ends_with_its_parameter(qwen3) -> None:
    _, tokenizer, grammars = qwen3
    properties = {"a": {"type": "string"}, "b": {"type": "number"}}
    parameters = {"type": "object", "properties": properties, "required": ["a"]}
    chat = Chat.of(HELLO, tools=[tool("f", parameters, strict=True), tool("g")])
    make = grammars.constraint(coder(tokenizer).grammar(chat, []))
    text = "<parameter=a>\nx <b>\n</parameter\n</parameter>\n"
    number = "<parameter=b>\n-1.5\n</parameter>\n"
    call = f"<tool_call>\n<function=f>\n{text}{number}</function>\n</tool_call>"
    loose = "<tool_call>\n<function=g>\n<parameter=k>\nv\n</parameter>\n</function>\n</tool_call>"
    make().accept(tokenizer.encode_control(f"Look.\n{call}\n{loose}<|im_end|>"))
    for wrong in (
        call.replace("-1.5", "1e5"),
        call.replace("=a>", "=c>"),
        call.replace(text, ""),
        call.replace("x <b>", "x</parameter>"),
        call.replace("=f>", "=h>"),
        "<function=f>",
    ):
        with pytest.raises(OssiaError):
            make().accept(tokenizer.encode_control(f"{wrong}<|im_end|>"))


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"type": "string", "pattern": "a"}, "properties.a: pattern cannot be enforced"),
        ({"type": ["string", "integer"]}, "properties.a: needs a type"),
        ({"enum": ["a"]}, "properties.a: enum cannot be enforced"),
    ],
)
def test_what_tags_cannot_hold_is_refused_by_name(schema: Any, complaint: str, qwen3) -> None:
    template = "<function={{ messages[0].content }}"
    chat_format = TemplateFormat(template, qwen3[1], stop_ids=[1])
    parameters = {"type": "object", "properties": {"a": schema}}
    chat = Chat.of(HELLO, tools=[tool("f", parameters, strict=True)])
    with pytest.raises(OssiaError, match=rf"^tools\[0\]\.function\.parameters\.{complaint}"):
        chat_format.grammar(chat, [])


# ------------------------------------------------------------------ texts


@pytest.fixture(scope="module")
def letters(bytes_folder) -> Tokenizer:
    return load_tokenizer(bytes_folder)


@pytest.fixture(scope="module")
def hold(letters: Tokenizer):
    """hold(**structured_outputs) is a constraint on a text of bytes, which ends with its end."""
    grammars = Grammars(letters, VOCAB_SIZE)

    def make(**asked: Any) -> GrammarConstraint:
        structure = read_structured_outputs(asked)
        end = frozenset((letters.control["<|endoftext|>"],))
        return grammars.constraint(plain_grammar(structure, end))()

    return make


def mask(constraint: GrammarConstraint) -> set[int]:
    bits = memoryview(bytearray(4 * -(-VOCAB_SIZE // 32))).cast("I")
    constraint.mask(bits)
    return {n for n in range(32 * len(bits)) if bits[n // 32] >> n % 32 & 1}


def test_only_the_end_follows_a_complete_text(hold, letters: Tokenizer) -> None:
    end = letters.control["<|endoftext|>"]
    constraint = hold(choice=["no", "not"])
    constraint.accept(letters.encode("no"))
    assert mask(constraint) == {*letters.encode("t"), end}
    constraint.accept(letters.encode("t"))
    assert mask(constraint) == {end}
    constraint.accept([end])
    assert mask(constraint) == {end}
    constraint.accept([end, end])
    assert mask(constraint) == {end}


def test_a_copy_goes_its_own_way(hold, letters: Tokenizer) -> None:
    constraint = hold(choice=["ab", "cd"])
    copy = constraint.copy()
    copy.accept(letters.encode("a"))
    assert mask(copy) == {*letters.encode("b")}
    assert mask(constraint) == {*letters.encode("ac")}


def test_an_id_that_is_not_allowed_is_an_error(hold, letters: Tokenizer) -> None:
    for first in (letters.encode("x"), [letters.control["<|endoftext|>"]]):
        constraint = hold(regex="ab")
        with pytest.raises(OssiaError):
            constraint.accept(first)
        with pytest.raises(OssiaError):
            mask(constraint)


def test_a_name_cannot_be_spelled_twice(hold, letters: Tokenizer) -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    constraint = hold(json={"type": "object", **schema})
    constraint.accept(letters.encode('{"a":1,"'))
    with pytest.raises(OssiaError):
        constraint.copy().accept(letters.encode("\\u0061"))
    with pytest.raises(OssiaError):
        constraint.copy().accept(letters.encode('a"'))
    constraint.accept(letters.encode('ab":"é\\n"}'))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def chain(definition: str, count: int) -> str:
    rules = "\n".join(definition.format(this=f"a{n}", next=f"a{n + 1}") for n in range(count))
    return f'start: a0\n{rules}\na{count}: "x"'


def within(depth: int) -> dict[str, Any]:
    """Patterns that a string must all match, by a schema in another."""
    schema: dict[str, Any] = {"pattern": "a"}
    for n in range(depth):
        schema = {"anyOf": [schema], "pattern": f"(.{{{n}}}a)+"}
    return schema


# What cannot be compiled, and the parameter and the reason that the error names.
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "depth": ({"json": nested(200)}, "json: is nested"),
    "great depth as text": ({"json": '{"a":' * 100_000}, "json: is not JSON"),
    "size": ({"json": {"enum": ["x" * 2**20]}}, "json: is 1048590 bytes"),
    "properties": (
        {"json": {"properties": {f"p{n}": {} for n in range(2000)}}},
        "json.properties: more than",
    ),
    "patterns": (
        {"json": {"properties": {f"p{n}": {"pattern": "a"} for n in range(99)}}},
        "properties.p64: more than",
    ),
    "patterns at once": (
        {"json": {"allOf": [{"pattern": f"(.{{{n}}}a)+"} for n in range(64)]}},
        "json: combines schemas, so there may be 12 patterns",
    ),
    "patterns at once, by names": (
        {
            "json": {
                "$ref": "#/$defs/p0",
                "$defs": {
                    f"p{n}": {"pattern": f"(.{{{n}}}a)+", "$ref": f"#/$defs/p{n + 1}"}
                    for n in range(40)
                },
            }
        },
        "combines schemas, so there may be 12 patterns",
    ),
    "patterns at once, one in another": (
        {"json": within(40)},
        "combines schemas, so there may be 12 patterns",
    ),
    "names by pattern": (
        {"json": {"patternProperties": {f"^.*{n}": {} for n in range(99)}}},
        "json: more than 32 patternProperties",
    ),
    "product": (
        {
            "json": {
                "allOf": [
                    {"anyOf": [{"properties": {f"p{i}{j}": {"type": "null"}}} for j in range(9)]}
                    for i in range(9)
                ]
            }
        },
        "json: cannot be compiled: schema too large",
    ),
    "a loop without an end": ({"json": {"$ref": "#"}}, "json: "),
    "another host": (
        {"json": {"$ref": "http://localhost/x"}},
        "json: cannot be compiled: Resource",
    ),
    "no value": (
        {"json": {"allOf": [{"type": "null"}, {"type": "string"}]}},
        "json: .*incompatible",
    ),
    "repeated names": ({"json": {"minProperties": 5}}, "json.minProperties: cannot be enforced"),
    "a keyword": (
        {"json": {"properties": {"not": {"not": {}}}}},
        "json.properties.not: the keyword not",
    ),
    "exclusive schemas": (
        {"json": {"items": {"oneOf": [{"minimum": 1}, {"maximum": 9}]}}},
        "json.items: oneOf",
    ),
    "a format": ({"json": {"type": "string", "format": "x"}}, "json: .*Unknown format: x"),
    "an old draft": ({"json": {"$schema": "http://json-schema.org/draft-03/schema#"}}, r"\$schema"),
    "an escape": ({"json": {"const": "\0"}}, "json.const: control characters"),
    "a parenthesis": ({"regex": "(" * 10_000}, "regex: cannot be compiled"),
    "look-ahead": ({"regex": "(?=a)b"}, "regex: .*look-around"),
    "a long regex": ({"regex": "a" * 2**16}, "regex: longer than"),
    "no rule": ({"grammar": "start: a"}, "grammar: cannot be compiled"),
    "rules in rules": ({"grammar": chain("{this}: {next}", 20_000)}, "grammar: longer than"),
    "doubled terminals": (
        {"grammar": chain("{this}: {next} {next}", 60).replace("a", "A").replace("stArt", "start")},
        "grammar: cannot be compiled",
    ),
    "deep groups": ({"grammar": f"start: {'(' * 9999}{')' * 9999}"}, "grammar: .*too deeply"),
    "control tokens": ({"grammar": "start: <|return|>"}, "grammar: must not name tokens"),
    "ids of tokens": ({"grammar": 'start: "<a>" <[0-9]>'}, "grammar: must not name tokens"),
    "choices": ({"choice": ["x"] * 20_000}, "choice: has more than"),
    "no choice": ({"choice": []}, "choice: must be a list"),
    "half a character": ({"choice": ["\ud800"]}, r"choice\[0\]: has half"),
    "nothing": ({}, "structured_outputs: must have exactly one"),
    "two": ({"regex": "a", "choice": ["a"]}, "structured_outputs: must have exactly one"),
    "another": ({"structural_tag": "{}"}, "structured_outputs.structural_tag: there is no"),
    "any object": ({"json_object": False}, "json_object: must be true"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_compiled_is_refused_by_name(name: str, hold) -> None:
    asked, complaint = HOSTILE[name]
    with pytest.raises(OssiaError, match=complaint) as error:
        hold(**asked)
    assert str(error.value).startswith("structured_outputs")


@pytest.mark.parametrize(
    "grammar",
    [
        chain("{this}: {next}", 900),
        chain("{this}: [{next}] {next}", 900),
        chain('{this}: "y" | {next} "z"', 900).replace("a", "A").replace("stArt", "start"),
        'start: start start | "a" | ""',
        'start: "a" // <b> "\n',
    ],
)
def test_the_largest_grammars_compile_and_are_held(grammar: str, hold, letters) -> None:
    ids = write(hold(grammar=grammar), letters, VOCAB_SIZE, 0, 30)
    assert ids


def test_what_is_not_strict_is_held_as_far_as_it_can_be(hold, letters: Tokenizer) -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}
    asked = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    structure = Chat.of(HELLO, response_format=asked).structure
    end = frozenset((letters.control["<|endoftext|>"],))
    constraint = Grammars(letters, VOCAB_SIZE).constraint(plain_grammar(structure, end))()
    constraint.accept(letters.encode("[1,1]"))
    with pytest.raises(OssiaError):
        constraint.accept(letters.encode("x"))


def test_a_compiled_grammar_is_kept(letters: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars, compiled = Grammars(letters, VOCAB_SIZE), []
    compile_one = partial(grammars._compile)
    monkeypatch.setattr(grammars, "_compile", lambda *a: compiled.append(a) or compile_one(*a))
    for n in (*range(40), 39, 8, 0):
        structure = read_structured_outputs({"regex": f"a{{{n}}}b"})
        grammars.constraint(plain_grammar(structure, frozenset((257,))))
    assert len(compiled) == 41  # the first had made room for others


def test_without_llguidance_structure_is_refused(letters, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    structure = read_structured_outputs({"regex": "a"})
    with pytest.raises(OssiaError, match=r"pip install 'ossia\[structured\]'"):
        Grammars(letters, VOCAB_SIZE).constraint(plain_grammar(structure, frozenset((257,))))


def test_a_model_without_an_end_cannot_be_held(letters: Tokenizer) -> None:
    structure = read_structured_outputs({"regex": "a"})
    with pytest.raises(OssiaError, match="no id that ends a text"):
        Grammars(letters, VOCAB_SIZE).constraint(plain_grammar(structure, frozenset()))
