"""Calls in every form that models write become the same events, however they arrive."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.text.calls import typed
from ossia.text.chat import ToolDescription
from ossia.text.tags import TagParser
from tests.text.replies import read, read_text

PROPERTIES = {
    "path": {"type": "string"},
    "count": {"type": "integer"},
    "share": {"type": "number"},
    "all": {"type": "boolean"},
    "list": {"type": "array"},
    "object": {"type": "object"},
    "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "word": {"type": ["string", "null"]},
}
TOOLS = (
    ToolDescription("write", parameters={"type": "object", "properties": PROPERTIES}),
    ToolDescription("now"),
)
WRITE = "<function=write>\n<parameter=path>\na.txt\n</parameter>\n</function>"
WRITTEN = ("call write", '{"path": "a.txt"}')
CODE = "if a < b:\n    x = '</function>'\n\n    print(\"<tool_call>\")"


def parser(tokenizer, tools=TOOLS, bare=True) -> TagParser:
    return TagParser(tokenizer, (), tools, bare_functions=bare)


FUNCTIONS = {
    "as taught": (f"<tool_call>\n{WRITE}\n</tool_call>", [WRITTEN]),
    "after text": (
        f"Now.\n\n<tool_call>\n{WRITE}\n</tool_call><|im_end|>",
        [("final", "Now."), WRITTEN],
    ),
    "two": (
        f"<tool_call>\n{WRITE}\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        [WRITTEN, ("call now", "{}")],
    ),
    "two in one tag": (
        f"<tool_call>\n{WRITE}\n<function=now>\n</function>\n</tool_call>",
        [WRITTEN, ("call now", "{}")],
    ),
    "without line ends": (
        "<tool_call><function=write><parameter=path>a.txt</parameter></function></tool_call>",
        [WRITTEN],
    ),
    "only the parameter's own line ends are the format's": (
        "<tool_call>\n<function=write>\n<parameter=path>\n\n a\n\n</parameter>\n</function>\n"
        "</tool_call>",
        [("call write", r'{"path": "\n a\n"}')],
    ),
    "the tag forgotten": (f"Now.\n{WRITE}\n</tool_call>", [("final", "Now."), WRITTEN]),
    "both tags forgotten": (f"{WRITE}\nDone.", [WRITTEN, ("final", "Done.")]),
    "a parameter without its end": (
        "<tool_call>\n<function=write>\n<parameter=path>\na.txt\n<parameter=count>\n2\n</parameter>\n"
        "</function>\n</tool_call>",
        [("call write", '{"path": "a.txt", "count": 2}')],
    ),
    "cut off": (
        "<tool_call>\n<function=write>\n<parameter=path>\na.t",
        [("call write", '{"path": "a.t"}')],
    ),
    "cut off in its name": (
        "<tool_call>\n<function=wri",
        [("final", "<tool_call>\n<function=wri</tool_call>")],
    ),
    "a namespace": (
        "<tool_call>\n<function=functions.now>\n</function>\n</tool_call>",
        [("call now", "{}")],
    ),
    "a function that is not offered": (
        "<tool_call>\n<function=other>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>",
        [("call other", '{"n": "1"}')],
    ),
    "text about functions": (
        "Write <function=other> or <function=wri, f<functions and <func",
        [("final", "Write <function=other> or <function=wri, f<functions and <func")],
    ),
    "code as a value": (
        f"{WRITE.replace('a.txt', CODE.replace('<tool_call>', '<x>'))}",
        [("call write", json.dumps({"path": CODE.replace("<tool_call>", "<x>")}))],
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_in_tags(qwen3_tokenizer, name):
    text, expected = FUNCTIONS[name]
    assert read_text(parser(qwen3_tokenizer), qwen3_tokenizer, text) == expected


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_in_tags_character_by_character(qwen3_tokenizer, name):
    """However the model cuts its text into tokens."""
    text, expected = FUNCTIONS[name]
    ids = []
    for id in qwen3_tokenizer.encode_control(text):
        if id in qwen3_tokenizer.control.values():
            ids.append(id)
        else:
            ids += [qwen3_tokenizer.encode(c)[0] for c in qwen3_tokenizer.decode([id])]
    assert read(parser(qwen3_tokenizer), ids) == expected


def test_without_tools_or_such_a_template_a_function_is_text(qwen3_tokenizer):
    for tools, bare in (((), True), (TOOLS, False)):
        found = read(parser(qwen3_tokenizer, tools, bare), qwen3_tokenizer.encode(WRITE))
        assert found == [("final", WRITE)]


VALUES = [
    ("count", "7", 7),
    ("count", " -7 ", -7),
    ("count", "seven", "seven"),
    ("count", "7.5", "7.5"),
    ("count", "null", None),
    ("share", "7", 7),
    ("share", "0.25", 0.25),
    ("share", "1e3", 1000.0),
    ("share", "1e999", "1e999"),
    ("share", "nan", "nan"),
    ("all", "true", True),
    ("all", "False", False),
    ("all", "maybe", "maybe"),
    ("list", '[1, "b"]', [1, "b"]),
    ("list", "['a', True]", ["a", True]),
    ("list", "a, b", "a, b"),
    ("object", '{"a": {"b": 1}}', {"a": {"b": 1}}),
    ("object", "{'a': None}", {"a": None}),
    ("object", "{'a': {1, 2}}", "{'a': {1, 2}}"),
    ("path", "7", "7"),
    ("path", "true", "true"),
    ("path", "null", "null"),
    ("path", '{"a": 1}', '{"a": 1}'),
    ("maybe", "null", None),
    ("maybe", "3", 3),
    ("word", "null", None),
    ("word", "3", "3"),
    ("unknown", "3", "3"),
    ("unknown", "null", None),
]


@pytest.mark.parametrize(("key", "text", "value"), VALUES)
def test_values_have_the_types_of_the_schema(key, text, value):
    found = typed(text, PROPERTIES.get(key))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "schema", [None, True, {}, {"type": 7}, {"type": [7]}, {"anyOf": 7}, {"anyOf": [7]}]
)
def test_a_schema_without_types_leaves_text(schema):
    assert typed("7", schema) == "7"


JSON: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "parameters for arguments": ('{"name": "f", "parameters": {"a": 1}}', [("call f", '{"a": 1}')]),
    "function around": (
        '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}',
        [("call f", '{"a": 1}')],
    ),
    "a list": (
        '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": "{}"}]',
        [("call f", "{}"), ("call g", "{}")],
    ),
    "no arguments": ('{"name": "f"}', [("call f", "{}")]),
    "null arguments": ('{"name": "f", "arguments": null}', [("call f", "{}")]),
    "as Python prints": ("{'name': 'f', 'arguments': {'a': True}}", [("call f", '{"a": true}')]),
    "a namespace": ('{"name": "functions.f", "arguments": {"a": 1}}', [("call f", '{"a": 1}')]),
    "an id": ('{"id": "1", "name": "f", "arguments": {"a": 1}}', [("call f", '{"a": 1}')]),
}


@pytest.mark.parametrize("name", JSON)
def test_calls_as_json(qwen3_tokenizer, name):
    body, expected = JSON[name]
    text = f"<tool_call>\n{body}\n</tool_call>"
    assert read_text(TagParser(qwen3_tokenizer), qwen3_tokenizer, text) == expected


@settings(max_examples=150)
@given(
    arguments=st.dictionaries(st.sampled_from(sorted(PROPERTIES)), st.text(max_size=12), min_size=1)
)
def test_any_text_comes_back(qwen3_tokenizer, arguments: dict[str, Any]):
    """If no end of a parameter is in it, and it is no word for null or a value of another type."""
    tool = ToolDescription(
        "write", parameters={"properties": {key: {"type": "string"} for key in PROPERTIES}}
    )
    body = "".join(
        f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items()
    )
    text = f"<function=write>\n{body}</function>"
    ((_, found),) = read(parser(qwen3_tokenizer, (tool,)), qwen3_tokenizer.encode(text))
    decoded = qwen3_tokenizer.decode(qwen3_tokenizer.encode(text))
    if decoded == text:  # NFC changes nothing
        assert json.loads(found) == arguments
