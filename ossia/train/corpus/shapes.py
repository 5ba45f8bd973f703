"""Lines of conversation files in the shapes of other tools, as messages, tools and what of them is
to be learned. What cannot be honoured is refused by name; nothing is ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ossia.errors import OssiaError
from ossia.text.calls import read_value, types_of
from ossia.text.chat import call_of

# Who speaks in ShareGPT's files and in ms-swift's.
_SPEAKERS = {
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response"), "tool"),
}
_CALLERS = ("function_call", "tool_call")
_SHAPES = (
    'write "messages", or "conversations" (ShareGPT), "prompt" and "completion", or "instruction" '
    'and "output" (Alpaca)'
)
_COMPLETIONS = ("completion", "response")

# A message's keys that say whether it is learned: 1 and true are yes, but for the last.
_LEARNED = ("weight", "train", "training", "trainable", "loss", "loss_mask", "masked")
_CONTROL = re.compile(r"weight|mask|loss|train")
# A line's keys that change what is learned or rendered, and the values that ask for what is done.
_ROW_KEYS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("weight", "weights", "sample_weight", "loss_weight", "loss_scale"), (1,)),
    **dict.fromkeys(("train_on_input", "train_on_inputs", "train_on_prompt"), (False,)),
    **dict.fromkeys(("mask_prompt", "completion_only_loss", "assistant_only_loss"), (True,)),
    **dict.fromkeys(("mask_history", "train_on_last", "train_on_turn"), (False,)),
    **dict.fromkeys(("masks", "loss", "loss_mask", "labels", "completion_mask"), ()),
    **dict.fromkeys(("assistant_mask", "assistant_masks"), ()),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "documents"), ({}, [], "")),
    "mask": ("User", "user"),
}
_TAGGED_CALLS = re.compile(r"(.*?)((?:\s*<tool_call>.*?</tool_call>)+)\s*\Z", re.S)
_TAGGED_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)
_TAGGED_RESULTS = re.compile(r"(?:\s*<tool_response>.*?</tool_response>)+\s*\Z", re.S)
_TAGGED_RESULT = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.S)


@dataclass(frozen=True)
class Line:
    """What a line holds, in the form of Chat Completions. `learned` are the indices of the replies
    to learn.
    """

    messages: list[Any]
    tools: list[Any]
    learned: frozenset[int]


def read(value: Any) -> Line:
    """The content of a line. Raises OssiaError for a shape that is unknown, or that asks for
    something that is not done.
    """
    if not isinstance(value, Mapping):
        raise _unknown(value)
    _check_row(value)
    tools = _tools(value)
    messages: list[Any] = []
    learned: list[bool] = []
    for n, (given, is_answer) in enumerate(_spoken(value)):
        where = f"messages[{n}]"
        for message in _plain(given, where):
            wanted = _is_learned(message, where) and is_answer
            message = _without_padding(message, tools)
            if _speaker(given) in _CALLERS and messages and _speaker(messages[-1]) == "assistant":
                if wanted != learned[-1]:
                    raise OssiaError(f"{where}: a reply is learned whole, with its calls, or not")
                calls = [*(messages[-1].get("tool_calls") or ()), *message["tool_calls"]]
                messages[-1] = {**messages[-1], "tool_calls": calls}
            else:
                messages.append(message)
                learned.append(wanted)
    return Line(messages, tools, frozenset(n for n, wanted in enumerate(learned) if wanted))


def _check_row(value: Mapping[str, Any]) -> None:
    for key, harmless in _ROW_KEYS.items():
        asked = value.get(key)
        if asked is not None and asked not in harmless:
            raise OssiaError(
                f'its "{key}" asks for what finetune does not do: it learns each reply as it is; '
                'leave the key out, and give replies that are not to be learned a "weight" of 0'
            )


def _spoken(value: Mapping[str, Any]) -> Iterator[tuple[Any, bool]]:
    """The messages, and whether each belongs to what may be learned."""
    if (system := value.get("system")) and isinstance(system, str):
        yield {"role": "system", "content": system}, False
    if isinstance(value.get("messages"), list | str):
        yield from ((message, True) for message in _listed(value["messages"], "messages"))
    elif "conversations" in value:
        yield from ((turn, True) for turn in _listed(value["conversations"], "conversations"))
    elif "prompt" in value and (key := next((k for k in _COMPLETIONS if k in value), None)):
        yield from ((said, False) for said in _said(value["prompt"], "user", "prompt"))
        yield from ((said, True) for said in _said(value[key], "assistant", key))
    elif "instruction" in value and "output" in value:
        yield from ((said, True) for said in _alpaca(value))
    else:
        raise _unknown(value)


def _unknown(value: Any) -> OssiaError:
    """The error about a line that is no conversation: what it is instead."""
    hint = _SHAPES
    if isinstance(value, list):
        hint = "it is a JSON array: write each element on a line of its own (jq -c '.[]')"
    elif isinstance(value, Mapping) and {"chosen", "rejected"} & value.keys():
        hint = "it looks like preferences, which finetune does not learn; " + _SHAPES
    elif isinstance(value, Mapping) and isinstance(value.get("text"), str):
        hint = "it is a text, which ossia train reads"
    return OssiaError(f'not an object whose "messages" is a list; {hint}')


def _said(value: Any, role: str, key: str) -> list[Any]:
    """A prompt or a completion: a text, or messages."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _listed(value, key)


def _alpaca(value: Mapping[str, Any]) -> Iterator[Any]:
    """The turns of an instruction: those before it, it and its input, and the output."""
    said = [(key, value.get(key)) for key in ("instruction", "input", "output")]
    for key, text in said:
        if text is not None and not isinstance(text, str):
            raise OssiaError(f'its "{key}" is not a string')
    pairs = _listed(value.get("history") or [], "history")
    question = "\n".join(text for key, text in said if text and key != "output")
    for pair in [*pairs, [question, value["output"]]]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise OssiaError('its "history" is not a list of pairs')
        yield {"role": "user", "content": pair[0]}
        yield {"role": "assistant", "content": pair[1]}


def _listed(value: Any, key: str) -> list[Any]:
    """A list, or the JSON of one: some files hold it as a string."""
    if isinstance(value, str):
        value = read_value(value)
    if not isinstance(value, list):
        raise OssiaError(f'its "{key}" is not a list')
    return value


def _tools(value: Mapping[str, Any]) -> list[Any]:
    """The functions that the line offers, also under the older `functions`."""
    key = "tools" if value.get("tools") is not None else "functions"
    given = value.get(key)
    listed = [] if given is None or given == "" else _listed(given, key)
    return [_without_nulls(read_value(tool) if isinstance(tool, str) else tool) for tool in listed]


def _speaker(message: Any) -> Any:
    return message.get("role", message.get("from")) if isinstance(message, Mapping) else None


def _plain(given: Any, where: str) -> list[Any]:
    """A message in the form of Chat Completions; several if it holds several tools' results."""
    if not isinstance(given, Mapping):
        return [given]
    message, speaker = dict(given), _speaker(given)
    message.pop("from", None)
    if "value" in message and "content" not in message:
        message["content"] = message.pop("value")
    message["role"] = _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    content = message.get("content")
    if speaker in _CALLERS:
        message |= {"content": "", "tool_calls": _written_calls(content, where)}
    if not isinstance(content, str):
        return [message]
    if message["role"] == "assistant" and not message.get("tool_calls"):
        return [_with_calls(message, content, where)]
    if message["role"] == "tool" and _TAGGED_RESULTS.match(content):
        return [{**message, "content": result} for result in _TAGGED_RESULT.findall(content)]
    return [message]


def _written_calls(content: Any, where: str) -> list[Any]:
    """The calls that are the content of a message, as an object or as its JSON."""
    value = read_value(content) if isinstance(content, str) else content
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(call_of(call) for call in calls):
        raise OssiaError(f"{where}: not a call: needs JSON with a name and arguments")
    return calls


def _with_calls(message: dict[str, Any], content: str, where: str) -> dict[str, Any]:
    """A reply whose content ends with calls in tags: the calls, as they are not ordinary text."""
    found = _TAGGED_CALLS.match(content)
    if found is None:
        return message
    bodies = _TAGGED_CALL.findall(found[2])
    calls = [call for body in bodies for call in _written_calls(body, f"{where}: <tool_call>")]
    return {**message, "content": found[1], "tool_calls": calls}


def _is_learned(message: Any, where: str) -> bool:
    """Whether a message is a reply to be learned. Raises OssiaError for what a reply's keys ask for
    beyond yes and no, and for learning what others say.
    """
    if not isinstance(message, Mapping):
        return False
    is_reply, learned = message.get("role") == "assistant", True
    for key, value in message.items():
        if value is None or not isinstance(key, str) or not _CONTROL.search(key):
            continue
        if key not in _LEARNED or value not in (0, 1):
            raise OssiaError(
                f"{where}.{key}: {json.dumps(value)[:60]} cannot be honoured: a reply is learned "
                'or not; give it a "weight" of 1 or 0'
            )
        wanted = bool(value) != (key == "masked")
        if wanted and not is_reply:
            raise OssiaError(f"{where}.{key}: only the assistant's replies are learned")
        learned = learned and wanted
    return is_reply and learned


def _without_padding(message: Any, tools: list[Any]) -> Any:
    """The message without the nulls that tables put where a call of another row has an argument:
    those that the tool's schema does not allow.
    """
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    if not isinstance(calls, list):
        return message
    schemas = {function["name"]: function.get("parameters") for function in _functions(tools)}
    return {**message, "tool_calls": [_unpadded(call, schemas) for call in calls]}


def _functions(tools: list[Any]) -> Iterator[Mapping[str, Any]]:
    for tool in tools:
        if isinstance(tool, Mapping):
            function = tool.get("function", tool)
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                yield function


def _unpadded(call: Any, schemas: Mapping[str, Any]) -> Any:
    written = call_of(call)
    if written is None or not isinstance(written[1], Mapping) or written[0] not in schemas:
        return call
    name, arguments = written
    schema = schemas[name]
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    properties = properties if isinstance(properties, Mapping) else {}

    def is_padding(key: str, value: Any) -> bool:
        types = types_of(properties.get(key))
        return value is None and (key not in properties or (bool(types) and "null" not in types))

    kept = {key: value for key, value in arguments.items() if not is_padding(key, value)}
    return {"id": call.get("id"), "type": "function", "function": {"name": name, "arguments": kept}}


def _without_nulls(tool: Any) -> Any:
    """A tool without the nulls that tables put where another row's tool has a key. Those that a
    schema may mean stay.
    """
    if isinstance(tool, list):
        return [_without_nulls(item) for item in tool]
    if not isinstance(tool, Mapping):
        return tool
    meant = ("default", "const", "enum", "examples")
    return {
        key: value if key in meant else _without_nulls(value)
        for key, value in tool.items()
        if value is not None or key in meant
    }
