"""Tools that the server runs: what the model is offered, what runs, and what clients see of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ossia.errors import OssiaError
from ossia.tools.browser import Browser, Folder
from ossia.tools.python import Python
from ossia.tools.toolset import Caller, Function, Namespace, Result
from tests.scripted import eventually
from tests.serve.conftest import ANSWER, CALL, Served

pytest.importorskip("fastapi")

from ossia.serve.hosted import Hosted

CODE = "<|channel|>analysis<|message|>Run it.<|end|><|start|>assistant<|channel|>analysis to=python code<|message|>print(6 * 7)<|call|>"  # noqa: E501
ADD = (
    "<|channel|>analysis<|message|>Add.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
FLAT = [{"type": "function", "name": "weather", "description": "", "parameters": None}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


class Echo:
    """A toolset whose calls give back what they were called with, as the n-th of their reply."""

    def __init__(self, label: str, *names: str, namespace: Namespace | None = None) -> None:
        self.label, self.namespace = label, namespace
        self.functions = [Function(name, f"Does {name}.", SCHEMA) for name in names]
        self.calls: list[tuple[str, str]] = []

    def begin(self) -> Caller:
        count = 0

        async def call(name: str, arguments: str) -> Result:
            nonlocal count
            count += 1
            self.calls.append((name, arguments))
            return Result(f"{count}:{name}:{arguments}", is_error="bad" in arguments)

        return call


def python() -> Echo:
    return Echo("python", "python", namespace=Namespace("python", "Runs code."))


def create(served: Served, **options: Any) -> Any:
    return served.client.responses.create(**{"model": "tiny", "input": "?", **options})


# ------------------------------------------------------------------ the loop


def test_the_model_goes_on_from_what_its_call_gave(serve):
    code, little = python(), Echo("little", "add")
    served = serve(CODE, ADD, ADD, ANSWER, hosted=Hosted([code, little]))
    answer = served.chat()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "Forty-two, é!",
        "stop",
    )
    assert code.calls == [("python", "print(6 * 7)")]
    assert little.calls == [("add", '{"a": 1}')] * 2
    first, second, _, last = (served.prompt(n) for n in range(4))
    assert "## python\n\nRuns code." in first
    assert "type add = (_: {" in first
    assert (
        "<|start|>python to=assistant<|channel|>analysis<|message|>1:python:print(6 * 7)" in second
    )
    assert "2:add:" in last  # one set of tools remembers the reply's earlier calls
    assert "Run it." in last  # reasoning is kept until the answer
    prompts = [len(request.prompt) for request in served.engine.requests]
    assert answer.usage.prompt_tokens == sum(prompts)
    assert answer.usage.completion_tokens > len("Forty-two, é!")


class Faulty(Echo):
    """Raises, or gives back what is no text."""

    def begin(self) -> Caller:
        async def call(_name: str, arguments: str) -> Result:
            if "1" in arguments:
                raise ZeroDivisionError("a tool's fault")
            return Result("half \ud83d of a pair")

        return call


@pytest.mark.parametrize("stream", [False, True])
def test_a_faulty_tool_ends_no_reply(serve, stream):
    other = ADD.replace("1", "2")
    served = serve(ADD, other, ANSWER, hosted=Hosted([Faulty("little", "add")]))
    answer = served.chat(stream=stream)
    if stream:
        parts = [chunk.choices[0].delta.model_dump() for chunk in answer]
        assert "".join(part["content"] or "" for part in parts) == "Forty-two, é!"
        return
    message = answer.choices[0].message
    assert message.content == "Forty-two, é!"
    first, second = message.server_tool_calls
    assert (first["output"], first["is_error"]) == ("error: the tool failed: a tool's fault", True)
    assert (second["output"], second["is_error"]) == ("half \ufffd of a pair", False)


def test_calls_and_results_are_seen_in_a_field_that_clients_do_not_answer(serve):
    served = serve(CODE, ADD, ANSWER, hosted=Hosted([python(), Echo("little", "add")]))
    message = served.chat().choices[0].message
    assert message.tool_calls is None
    first, second = message.server_tool_calls
    assert first["function"] == {"name": "python", "arguments": "print(6 * 7)"}
    assert (first["server_label"], first["output"]) == ("python", "1:python:print(6 * 7)")
    assert (second["server_label"], second["is_error"]) == ("little", False)
    assert message.reasoning_content == "Run it.\n\nAdd.\n\nHm."


def test_the_stream_has_the_same_parts(serve):
    script = (CODE, ADD, ANSWER)
    whole = serve(*script, hosted=Hosted([python(), Echo("little", "add")])).chat()
    served = serve(*script, hosted=Hosted([python(), Echo("little", "add")]))
    calls: dict[int, dict[str, Any]] = {}
    texts = {"content": "", "reasoning_content": ""}
    reasons = []
    for chunk in served.chat(stream=True):
        delta = chunk.choices[0].delta.model_dump()
        assert not delta.get("tool_calls")
        for key in texts:
            texts[key] += delta.get(key) or ""
        for part in delta.get("server_tool_calls") or ():
            call = calls.setdefault(part.pop("index"), {"function": {"name": "", "arguments": ""}})
            for key, value in part.pop("function", {}).items():
                call["function"][key] += value
            call |= part
        reasons.append(chunk.choices[0].finish_reason)
    message = whole.choices[0].message
    assert texts == {key: getattr(message, key) for key in texts}
    expected = [{**call, "id": ""} for call in message.server_tool_calls]
    assert [{**calls[n], "id": ""} for n in range(2)] == expected
    assert [reason for reason in reasons if reason] == ["stop"]


@pytest.mark.parametrize("apart", [False, True])
def test_a_message_is_sent_back_with_its_calls(serve, apart):
    served = serve(ADD, CALL, ANSWER, hosted=Hosted([Echo("little", "add")]))
    reply = served.chat(tools=TOOLS).choices[0]
    assert reply.finish_reason == "tool_calls"
    message = reply.message.model_dump(exclude_none=True)
    if apart:  # as LiteLLM does
        fields = {"server_tool_calls": message.pop("server_tool_calls"), "refusal": None}
        message["provider_specific_fields"] = fields
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"}
    served.chat(messages=[{"role": "user", "content": "?"}, message, result], tools=TOOLS)
    prompt = served.prompt()
    parts = ("Add.", '{"a": 1}', "1:add:", '{"city": "Oslo"}', "sunny")
    assert [part for part in parts if part in prompt] == [*parts]
    assert sorted(parts, key=prompt.index) == [*parts]


def test_a_call_of_the_client_s_function_ends_the_reply(serve):
    little = Echo("little", "add", "weather")
    served = serve(ADD, CALL, hosted=Hosted([little]))
    reply = served.chat(tools=TOOLS).choices[0]
    assert [call.function.name for call in reply.message.tool_calls] == ["weather"]
    assert little.calls == [("add", '{"a": 1}')]  # the client's function stands in for the other
    assert served.prompt(0).count("type weather = ") == 1


def test_a_model_that_never_answers_is_ended(serve):
    little = Echo("little", "add")
    served = serve(*[ADD] * 9, hosted=Hosted([little], most_calls=2))
    reply = served.chat().choices[0]
    assert (len(little.calls), reply.finish_reason) == (2, "stop")
    assert len(served.engine.requests) == 4
    assert "can call no more tools" in reply.message.server_tool_calls[2]["output"]
    response = create(served, max_tool_calls=1)
    assert len(little.calls) == 3
    assert [item.type for item in response.output].count("mcp_call") == 3


def test_the_tokens_of_all_rounds_are_limited_together(serve):
    served = serve(ADD, ANSWER, hosted=Hosted([Echo("little", "add")]))
    reply = served.chat(max_tokens=len(ADD)).choices[0]
    limits = [request.sampling.max_tokens for request in served.engine.requests]
    assert limits[0] == len(ADD)
    if len(limits) > 1:
        assert limits[1] < limits[0]
    else:
        assert reply.finish_reason == "length"


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 60_000])
def test_a_result_for_which_there_is_no_room_ends_the_reply(serve, text):
    class Long(Echo):
        def begin(self) -> Caller:
            async def call(_name: str, _arguments: str) -> Result:
                return Result(text)

            return call

    reply = serve(ADD, hosted=Hosted([Long("little", "add")])).chat().choices[0]
    assert reply.finish_reason == "length"
    assert reply.message.server_tool_calls[0]["output"] == text


def test_tools_are_not_offered_where_none_may_be_called(serve):
    served = serve(ANSWER, hosted=Hosted([python(), Echo("little", "add")]))
    served.chat(tools=TOOLS, tool_choice="none")
    assert "Runs code" not in served.prompt()
    assert "add" not in served.prompt()


def test_names_that_collide_have_the_labels_of_their_sets(serve):
    one, two = Echo("one", "add"), Echo("two", "add", "weird name/é")
    served = serve(
        ADD.replace("functions.add", "functions.two_add"), ANSWER, hosted=Hosted([one, two])
    )
    served.chat()
    assert (one.calls, two.calls) == ([], [("add", '{"a": 1}')])
    for name in ("one_add", "two_add", "weird_name__"):
        assert f"type {name} = " in served.prompt(0)


def test_a_client_that_hangs_up_ends_the_call(serve):
    class Slow(Echo):
        ended = began = False

        def begin(self) -> Caller:
            async def call(name: str, arguments: str) -> Result:
                import asyncio

                self.began = True
                try:
                    await asyncio.sleep(600)
                finally:
                    self.ended = True
                return Result("late")

            return call

    slow = Slow("little", "add")
    served = serve(ADD, hosted=Hosted([slow]))
    with served.chat(stream=True) as stream:
        for chunk in stream:
            if slow.began:
                break
            assert chunk
            if chunk.choices[0].delta.model_dump().get("server_tool_calls"):
                assert eventually(lambda: slow.began)
    assert eventually(lambda: slow.ended)


# ------------------------------------------------------------------ Responses


def test_calls_are_items_of_the_official_kinds(serve):
    bad = ADD.replace("1", '"bad"')
    served = serve(CODE, ADD, bad, ANSWER, hosted=Hosted([python(), Echo("little", "add")]))
    events = list(create(served, stream=True))
    for event in events:
        type(event).model_validate(event.to_dict())
    output = events[-1].response.output
    assert [item.type for item in output] == [
        "mcp_list_tools",
        "reasoning",
        "code_interpreter_call",
        "reasoning",
        "mcp_call",
        "reasoning",
        "mcp_call",
        "reasoning",
        "message",
    ]
    assert [tool.name for tool in output[0].tools] == ["add"]
    code, good, failed = output[2], output[4], output[6]
    assert (code.code, code.status) == ("print(6 * 7)", "completed")
    assert code.outputs[0].logs == "1:python:print(6 * 7)"
    assert (good.server_label, good.name, good.arguments) == ("little", "add", '{"a": 1}')
    assert (good.output, good.error, good.status) == ('1:add:{"a": 1}', None, "completed")
    assert (failed.output, failed.status) == (None, "failed")
    assert failed.error.content == [{"type": "text", "text": '2:add:{"a": "bad"}'}]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == output
    kinds = [
        e.type.removeprefix("response.") for e in events if getattr(e, "output_index", -1) == 4
    ]
    assert list(dict.fromkeys(kinds)) == [
        "output_item.added",
        "mcp_call.in_progress",
        "mcp_call_arguments.delta",
        "mcp_call_arguments.done",
        "mcp_call.completed",
        "output_item.done",
    ]
    assert [
        e.type.removeprefix("response.") for e in events if getattr(e, "output_index", -1) == 2
    ] == [
        "output_item.added",
        "code_interpreter_call.in_progress",
        "code_interpreter_call_code.delta",
        "code_interpreter_call_code.done",
        "code_interpreter_call.interpreting",
        "code_interpreter_call.completed",
        "output_item.done",
    ]
    assert events[-1].response.usage.input_tokens == sum(
        len(request.prompt) for request in served.engine.requests
    )


def test_an_open_turn_goes_on_with_the_server_s_calls_in_it(serve):
    bad = ADD.replace("1", '"bad"')
    scripts = (CODE, ADD, bad, CALL, ANSWER, ANSWER)
    served = serve(*scripts, hosted=Hosted([python(), Echo("little", "add")]))
    first = create(served, tools=FLAT)
    call = first.output[-1]
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    kept = create(served, input=[result], previous_response_id=first.id, tools=FLAT)
    assert "mcp_list_tools" not in [item.type for item in kept.output]
    said = [item.model_dump(exclude_none=True) for item in first.output]
    question = {"role": "user", "content": "?"}
    create(served, input=[question, *said, result], tools=FLAT, store=False)
    assert served.engine.requests[4].prompt == served.engine.requests[5].prompt
    for part in ("1:python:print(6 * 7)", "Add.", "1:add:", '2:add:{"a": "bad"}', "sunny"):
        assert part in served.prompt()


def test_code_in_an_object_is_shown_as_code(serve):
    wrapped = CODE.replace("print(6 * 7)", json.dumps({"code": "x = 'é'"}))
    served = serve(wrapped, ANSWER, hosted=Hosted([python()]))
    item = create(served).output[1]
    assert (item.type, item.code) == ("code_interpreter_call", "x = 'é'")


def test_a_call_that_is_cut_off_is_incomplete(serve):
    served = serve(ADD.removesuffix("<|call|>"), hosted=Hosted([Echo("little", "add")]))
    response = create(served)
    assert (response.status, response.output[-1].status) == ("incomplete", "incomplete")


def test_a_code_interpreter_is_offered_by_a_server_that_has_one(serve):
    tool = {"type": "code_interpreter", "container": {"type": "auto"}}
    include = ["code_interpreter_call.outputs"]
    served = serve(ANSWER, hosted=Hosted([python()]))
    assert create(served, tools=[tool], include=include).status == "completed"
    body = {"model": "tiny", "input": "?", "tools": [tool]}
    status, error = serve(ANSWER).post("/v1/responses", body)
    assert (status, error["error"]["param"]) == (400, "tools")


def test_the_code_of_a_model_runs_in_the_sandbox(serve, tmp_path):
    try:
        code = Python()
    except OssiaError as error:
        pytest.skip(str(error))
    (tmp_path / "rivers.md").write_text("The Danube ends in a delta.")
    search = '<|channel|>analysis to=browser.search code<|message|>{"query": "delta"}<|call|>'
    served = serve(CODE, search, ANSWER, hosted=Hosted([code, Browser(Folder(tmp_path), len)]))
    ran, found = served.chat().choices[0].message.server_tool_calls
    assert (ran["output"], ran["is_error"]) == ("42\n", False)
    assert "【0†rivers.md】 The Danube ends in a delta." in found["output"]
    assert found["output"] in served.prompt()


def test_a_name_that_the_model_made_up_is_no_figure_of_its_own(serve, tmp_path):
    made_up = "<|channel|>analysis to=browser.n{} code<|message|>{{}}<|call|>"
    calls = [made_up.format(n) for n in range(3)]
    served = serve(*calls, ANSWER, hosted=Hosted([Browser(Folder(tmp_path), len)]))
    assert len(served.chat().choices[0].message.server_tool_calls) == 3
    assert 'ossia_tool_calls_total{outcome="error",tool="browser"} 3.0' in served.get("/metrics")[1]
