"""Limits of time, and of requests of one key at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.scripted import eventually
from tests.serve.conftest import ANSWER, Served, end_after, openai

pytest.importorskip("fastapi")

CHAT = "/v1/chat/completions"
ENDLESS = "<|channel|>final<|message|>on"
STEPS = 100  # of the engine, after which a request's time is over
MESSAGE = {"model": "tiny", "messages": [{"role": "user", "content": "?"}]}


def slow(serve: Any, *scripts: str, **options: Any) -> Served:
    """A server whose model would go on for ever."""
    served = serve(*(scripts or (ENDLESS,) * 4), **options)
    served.engine.endless = True
    end_after(served, STEPS)
    return served


class TestTime:
    def test_what_there_is_by_then_is_the_answer(self, serve):
        served = slow(serve)
        choice = served.chat().choices[0]
        assert choice.finish_reason == "length"
        assert choice.message.content.startswith("on")
        assert eventually(lambda: served.engine.aborted == [0])
        assert 'ossia_requests_total{outcome="timeout"} 1.0' in served.get("/metrics")[1]

    def test_also_of_a_stream(self, serve):
        served = slow(serve)
        chunks = list(served.chat(stream=True, stream_options={"include_usage": True}))
        assert chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].usage.completion_tokens > 0
        assert eventually(lambda: served.engine.aborted == [0])

    def test_each_choice_has_what_it_has(self, serve):
        served = slow(serve, ANSWER, ENDLESS)
        ended, cut = served.chat(n=2).choices
        assert (ended.message.content, ended.finish_reason) == ("Forty-two, é!", "stop")
        assert (cut.message.content[:2], cut.finish_reason) == ("on", "length")

    def test_other_endpoints_say_it_in_their_way(self, serve):
        served = slow(serve)
        response = served.client.responses.create(model="tiny", input="?")
        assert (response.status, response.incomplete_details.reason) == (
            "incomplete",
            "max_output_tokens",
        )
        assert response.output[-1].status == "incomplete"
        _, message = served.post("/v1/messages", MESSAGE | {"max_tokens": 10**6})
        assert message["stop_reason"] == "max_tokens"
        background = served.client.responses.create(model="tiny", input="?", background=True)
        retrieve = served.client.responses.retrieve
        assert eventually(lambda: retrieve(background.id).status == "incomplete")

    def test_nothing_by_then_is_an_error(self, serve):
        served = serve(*(ENDLESS,) * 3)
        served.service.timeout = 0.05  # not of bodies, which may come slowly on a loaded machine
        served.engine.may_step.clear()
        with pytest.raises(openai.InternalServerError, match=r"nothing was .* 0\.05 s") as error:
            served.chat()
        assert (error.value.status_code, error.value.code) == (504, "timeout")
        with pytest.raises(openai.APIError, match="nothing was generated"):
            list(served.chat(stream=True))
        status, answer = served.post("/v1/messages", MESSAGE | {"max_tokens": 9})
        assert (status, answer["error"]["type"]) == (504, "timeout_error")
        served.engine.may_step.set()
        assert eventually(lambda: served.llm.stats().unfinished == 0)

    def test_a_request_in_time_is_not_touched(self, serve):
        served = serve(ANSWER, timeout=60)
        assert served.chat().choices[0].finish_reason == "stop"

    def test_a_body_that_does_not_arrive_is_given_up(self, serve):
        connection = serve(timeout=0.05).connect()
        connection.putrequest("POST", CHAT)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b'{"model": ')
        response = connection.getresponse()
        assert response.status == 408
        assert "did not arrive" in json.loads(response.read())["error"]["message"]


class TestKeys:
    def served(self, serve: Any) -> Served:
        served = serve(ENDLESS, *[ANSWER] * 9, keys=("one", "two"), max_per_key=1)
        served.engine.endless = True
        served.engine.may_step.clear()
        return served

    def post(self, served: Served, key: str, path: str = CHAT, **body: Any) -> tuple[int, Any]:
        return served.post(path, body or MESSAGE, Authorization=f"Bearer {key}")

    def test_one_key_cannot_take_the_place_of_others(self, serve):
        served = self.served(serve)
        with served.chat(stream=True):
            assert eventually(lambda: served.llm.stats().unfinished == 1)
            with pytest.raises(openai.RateLimitError) as error:
                served.chat()
            assert error.value.response.headers["retry-after"] == "1"
            assert error.value.code == "too_many_requests"
            status, answer = self.post(
                served, "one", "/v1/messages", model="tiny", max_tokens=9, **MESSAGE_ONLY
            )
            assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
            assert self.post(served, "one", "/v1/tokenize", prompt="x")[0] == 200
            served.engine.may_step.set()
            assert self.post(served, "two")[0] == 200
        assert eventually(lambda: 0 in served.engine.aborted)
        assert eventually(lambda: self.post(served, "one")[0] == 200)

    def test_a_response_in_the_background_counts_until_it_ends(self, serve):
        served = self.served(serve)
        responses = served.client.responses
        running = responses.create(model="tiny", input="?", background=True)
        with pytest.raises(openai.RateLimitError):
            responses.create(model="tiny", input="?", background=True)
        assert responses.retrieve(running.id).status == "queued"
        served.engine.may_step.set()
        assert responses.cancel(running.id).status == "cancelled"
        assert responses.create(model="tiny", input="?").status == "completed"

    def test_a_request_that_is_refused_counts_no_more(self, serve):
        served = serve(*[ANSWER] * 2, keys=("one",), max_per_key=1)
        for _ in range(3):
            with pytest.raises(openai.BadRequestError):
                served.chat(content="x" * 5000)
        assert served.chat().choices[0].finish_reason == "stop"


MESSAGE_ONLY = {"messages": MESSAGE["messages"]}


def test_figures_of_paths_and_of_what_is_kept(serve):
    served = serve(ANSWER, ANSWER)
    response = served.client.responses.create(model="tiny", input="?")
    served.client.responses.retrieve(response.id)
    served.get("/v1/nothing")
    for line in (
        'ossia_http_responses_total{path="/v1/responses",status="200"} 1.0',
        'ossia_http_responses_total{path="/v1/responses/{id}",status="200"} 1.0',
        'ossia_http_responses_total{path="other",status="404"} 1.0',
        'ossia_http_response_seconds_count{path="/v1/responses"} 1.0',
        "ossia_kept_responses 1.0",
        "ossia_background_responses 0.0",
    ):
        assert eventually(lambda line=line: f"{line}\n" in served.get("/metrics")[1]), line
    assert "ossia_kept_bytes 0.0" not in served.get("/metrics")[1]
