"""Messages as Anthropic's client reads them, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.scripted import eventually
from tests.serve import golden
from tests.serve.conftest import ANSWER, CALL, Served

anthropic = pytest.importorskip("anthropic")
pytest.importorskip("fastapi")

TOOLS = [
    {
        "name": "weather",
        "description": "Says it.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
TOLD = (
    "<|channel|>analysis<|message|>Hm, é.<|end|><|start|>assistant<|channel|>commentary<|message|>"
    "I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json"
    '<|message|>{"city": "Oslo"}<|call|>'
)
ADAPTIVE = {"type": "adaptive"}
PATH = "/v1/messages"


def client(served: Served) -> Any:
    url = f"http://127.0.0.1:{served.port}"
    return anthropic.Anthropic(base_url=url, api_key=served.key, max_retries=0, timeout=300)


def options(*, content: Any = "?", **changes: Any) -> dict[str, Any]:
    messages = changes.pop("messages", [{"role": "user", "content": content}])
    return {"model": "tiny", "max_tokens": 2000, "messages": messages, **changes}


def create(served: Served, **changes: Any) -> Any:
    return client(served).messages.create(**options(**changes))


def test_an_answer_is_the_first_block_unless_thinking_is_asked_for(serve):
    served = serve(ANSWER, ANSWER, ANSWER)
    drawn = {"temperature": 0.5, "top_k": 3, "top_p": 0.5}  # which the newest client lacks
    message = create(served, system="Be brief.", extra_body=drawn)
    type(message).model_validate(message.to_dict())
    assert [block.text for block in message.content] == ["Forty-two, é!"]
    assert (message.role, message.stop_reason, message.stop_sequence) == (
        "assistant",
        "end_turn",
        None,
    )
    usage, request = message.usage, served.engine.requests[0]
    assert usage.input_tokens + usage.cache_read_input_tokens == len(request.prompt)
    assert usage.output_tokens == len(served.llm.tokenizer.encode_control(ANSWER))
    assert usage.output_tokens_details.thinking_tokens == 3
    assert "Be brief." in served.prompt()
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 3, 0.5)
    assert sampling.max_tokens == 2000
    thought, answer = create(served, thinking=ADAPTIVE).content
    assert (thought.type, thought.thinking, answer.text) == ("thinking", "Hm.", "Forty-two, é!")
    assert thought.signature
    (answer,) = create(served, thinking={"type": "disabled"}).content
    assert answer.type == "text"
    assert "Reasoning: low" in served.prompt()


@pytest.mark.parametrize(
    ("name", "script", "changes"),
    [
        ("messages_answer", ANSWER, {}),
        ("messages_call", TOLD, {"tools": TOOLS, "thinking": ADAPTIVE}),
        ("messages_hidden", TOLD, {"tools": TOOLS}),
        ("messages_cut_off", ANSWER[:-15], {"thinking": ADAPTIVE}),
    ],
)
def test_events_are_as_they_were_found_right(serve, name, script, changes):
    connection = serve(script).connect()
    body = json.dumps(options(stream=True, **changes))
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for part in response.read().decode().split("\n\n")[:-1]:
        kind, data = part.split("\ndata: ")
        events.append(json.loads(data))
        assert kind == f"event: {events[-1]['type']}"
    golden.check(name, events)


@pytest.mark.parametrize("thinking", [None, ADAPTIVE])
@pytest.mark.parametrize("script", [ANSWER, TOLD, ANSWER[:-15]])
def test_a_stream_is_the_same_message_in_parts(serve, script, thinking):
    served = serve(script, script)
    changes = {"tools": TOOLS, **({"thinking": thinking} if thinking else {})}
    whole = create(served, **changes)
    with client(served).messages.stream(**options(**changes)) as stream:
        for event in stream:
            assert event.type
        final = stream.get_final_message()
    for message in (whole, final):
        message.id = ""
        for block in message.content:
            if block.type == "tool_use":
                assert block.id.startswith("toolu_")
                block.id = ""
    assert final.to_dict() == whole.to_dict()


def test_a_call_goes_on_from_its_result(serve):
    served = serve(TOLD, ANSWER)
    called = create(served, tools=TOOLS, thinking=ADAPTIVE)
    assert called.stop_reason == "tool_use"
    call = called.content[-1]
    assert (call.name, call.input) == ("weather", {"city": "Oslo"})
    result = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": [{"type": "text", "text": "drizzle"}],
    }
    question = {"role": "user", "content": [{"type": "text", "text": "Wh"}]}
    words = {"type": "text", "text": "Say it.", "cache_control": {"type": "ephemeral"}}
    said = [
        question,
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [words, result]},
    ]
    answer = create(served, messages=said, tools=TOOLS, thinking=ADAPTIVE)
    assert answer.stop_reason == "end_turn"
    prompt = served.prompt()
    parts = ("Wh", "Hm, é.", "I look.", '{"city": "Oslo"}', "drizzle", "Say it.")
    places = [prompt.index(part) for part in parts]
    assert places == sorted(places)
    assert "type weather = (_: {" in prompt


def test_a_result_that_is_an_error_says_so(serve):
    served = serve(ANSWER)
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "no net", "is_error": True}
    said = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
        {"role": "system", "content": "More rules."},
    ]
    create(served, messages=said, tools=TOOLS)
    assert "Error: no net" in served.prompt()
    assert "More rules." in served.prompt()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("{}", {}),
        ('{"city": "Oslo"', {"arguments": '{"city": "Oslo"'}),
        ("[1]", {"arguments": "[1]"}),
        ('{"text": "a\nb"}', {"text": "a\nb"}),
    ],
)
def test_arguments_are_an_object_whatever_the_model_writes(serve, arguments, expected):
    script = CALL.replace('{"city": "Oslo"}', arguments)
    served = serve(script, script)
    assert create(served, tools=TOOLS).content[-1].input == expected
    with client(served).messages.stream(**options(tools=TOOLS)) as stream:
        assert stream.get_final_message().content[-1].input == expected


def test_why_it_ended(serve):
    script = "<|channel|>final<|message|>Forty-two"
    served = serve(*[script + "<|return|>"] * 2, script, script)
    stopped = create(served, stop_sequences=["x", "two"])
    assert stopped.content[0].text == "Forty-"
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "two")
    assert create(served, stop_sequences=["x"]).stop_reason == "end_turn"
    length = len(served.llm.tokenizer.encode_control(script))
    assert create(served, max_tokens=length).stop_reason == "max_tokens"
    assert create(served).stop_reason == "model_context_window_exceeded"


@pytest.mark.parametrize(
    ("changes", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 16384}}, "high"),
        ({"thinking": ADAPTIVE, "output_config": {"effort": "low"}}, "low"),
        ({"output_config": {"effort": "max"}}, "high"),
        ({"thinking": ADAPTIVE}, "medium"),
    ],
)
def test_a_budget_is_an_effort(serve, changes, effort):
    served = serve(ANSWER)
    create(served, max_tokens=20_000, **changes)
    assert f"Reasoning: {effort}" in served.prompt()


def test_tokens_are_counted_as_they_are_read(serve):
    served = serve(ANSWER)
    changes = {"tools": TOOLS, "system": "Be brief.", "thinking": ADAPTIVE}
    usage = create(served, **changes).usage
    asked = options(**changes)
    del asked["max_tokens"]
    counted = client(served).messages.count_tokens(**asked)
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    assert len(served.engine.requests) == 1


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("changes", "enforced"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "any"}}, True),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "weather"}}, True),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, True),
        ({"tools": TOOLS, "tool_choice": {"type": "auto"}}, False),
        ({"tools": TOOLS, "tool_choice": {"type": "none"}}, True),
    ],
)
def test_calls_and_forms_are_enforced(serve, changes, enforced):
    served = serve(CALL)
    create(served, **changes)
    assert (served.engine.requests[0].constraint is not None) == enforced


REFUSED = {
    "max_tokens": {"max_tokens": 0},
    "messages": {"messages": [{"role": "assistant", "content": "The"}]},
    "messages[0]": {"messages": [{"role": "boss", "content": "?"}]},
    "messages[0].content[0]": {"content": [{"type": "image", "source": {}}]},
    "tools[0].type": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    "tools[0].input_examples": {"tools": [TOOLS[0] | {"input_examples": [{}]}]},
    "thinking.budget_tokens": {"thinking": {"type": "enabled", "budget_tokens": 2000}},
    "tools[0].defer_loading": {"tools": [TOOLS[0] | {"defer_loading": 0}]},
    "thinking.display": {"thinking": {"type": "adaptive", "display": "omitted"}},
    "thinking": {"thinking": {"type": "between_tools"}},
    "tool_choice": {"tool_choice": {"type": "function"}, "tools": TOOLS},
    "output_config.format": {"output_config": {"format": {"type": "json_schema"}}},
    "service_tier": {"service_tier": "priority"},
    "speed": {"speed": "fast"},
    "container": {"container": "c"},
    "temperature": {"temperature": -1},
    "stop_sequences[0]": {"stop_sequences": [1]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_by_name(serve, name):
    served = serve()
    status, answer = served.post(PATH, options(**REFUSED[name]))
    assert status == 400
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert name in answer["error"]["message"]
    assert not served.engine.requests


def test_a_thread_is_refused_by_the_code_after_which_clients_go_on_without(serve):
    status, answer = serve().post(PATH, options(thread={"type": "create"}))
    assert status == 400
    assert answer["error"]["details"] == {"error_code": "thread_unsupported_request"}


class TestErrors:
    def test_each_has_its_type(self, serve):
        served = serve(ANSWER, keys=("one",), max_body=1000)
        with pytest.raises(anthropic.NotFoundError, match="other") as error:
            create(served, model="other")
        assert error.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.RequestTooLargeError):
            create(served, content="x" * 1000)
        status, answer = served.post(PATH, b"{}", **{"x-api-key": "two"})
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
        encoded = {"x-api-key": "one", "Content-Encoding": "br"}
        assert served.post(PATH, b"{}", **encoded)[1]["type"] == "error"

    def test_a_key_comes_in_either_header(self, serve):
        served = serve(ANSWER, ANSWER, keys=("one",))
        assert create(served).content[0].text == "Forty-two, é!"  # x-api-key
        bearer = {"Authorization": "Bearer one"}
        assert served.post(PATH, options(), **bearer)[0] == 200

    def test_a_full_queue_asks_to_come_back(self, serve):
        served = serve(ANSWER, max_queue=1)
        served.engine.may_step.clear()
        with client(served).messages.stream(**options()) as stream:
            assert eventually(lambda: served.llm.stats().unfinished == 1)
            with pytest.raises(anthropic.RateLimitError) as error:
                create(served)
            assert error.value.response.headers["retry-after"] == "1"
            assert error.value.response.headers["request-id"].startswith("req_")
            served.engine.may_step.set()
            assert stream.get_final_text() == "Forty-two, é!"

    def test_a_request_that_fails_says_so(self, serve):
        served = serve(ANSWER, ANSWER)
        served.engine.broken = {0, 1}
        with pytest.raises(anthropic.InternalServerError, match="not finite"):
            create(served)
        with (
            client(served).messages.stream(**options()) as stream,
            pytest.raises(anthropic.APIStatusError, match="not finite"),
        ):
            stream.get_final_message()

    def test_a_client_that_hangs_up_leaves_the_engine(self, serve):
        served = serve("<|channel|>final<|message|>on", ANSWER)
        served.engine.endless = True
        with client(served).messages.stream(**options()) as stream:
            next(iter(stream.text_stream))
        assert eventually(lambda: served.engine.aborted == [0])
        metrics = served.get("/metrics")[1]
        assert 'ossia_requests_total{outcome="cancelled"} 1.0' in metrics


def test_a_silence_is_filled_with_pings(serve, monkeypatch):
    monkeypatch.setattr("ossia.serve.messages.routes.PING_SECONDS", 0.01)
    served = serve(ANSWER)
    served.engine.may_step.clear()
    connection = served.connect()
    body = json.dumps(options(stream=True))
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    pings = 0
    while pings < 5:
        pings += response.readline() == b"event: ping\n"
    served.engine.may_step.set()
    assert response.read().decode().count("event: message_stop\n") == 1
