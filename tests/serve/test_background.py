"""Responses in the background: polled, followed, cancelled, and after a restart."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from tests.scripted import eventually
from tests.serve.conftest import ANSWER, Served, openai

pytest.importorskip("fastapi")

from ossia.serve.responses.store import Kept, ResponseStore

ENDLESS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>on"


def begin(served: Served, **options):
    options = {"model": "tiny", "input": "?", "background": True, **options}
    return served.client.responses.create(**options)


def ended(served: Served, id: str):
    responses = served.client.responses
    assert eventually(lambda: responses.retrieve(id).status not in ("queued", "in_progress"))
    return responses.retrieve(id)


def test_it_is_queued_then_runs_then_is_complete(serve):
    served = serve(ANSWER)
    served.engine.may_step.clear()
    response = begin(served)
    assert (response.status, response.output, response.background) == ("queued", [], True)
    assert served.client.responses.retrieve(response.id).status == "queued"
    served.engine.may_step.set()
    done = ended(served, response.id)
    assert (done.status, done.output_text) == ("completed", "Forty-two, é!")
    assert done.completed_at is not None
    assert done.usage.output_tokens == len(served.llm.tokenizer.encode_control(ANSWER))


def test_what_there_is_so_far_can_be_seen(serve):
    served = serve(ENDLESS)
    served.engine.endless = True
    response = begin(served)
    retrieve = served.client.responses.retrieve
    assert eventually(lambda: len(retrieve(response.id).output_text) > 2)
    now = retrieve(response.id)
    assert now.status == "in_progress"
    assert [item.status for item in now.output] == ["completed", "in_progress"]
    with pytest.raises(openai.BadRequestError, match="not complete yet") as error:
        begin(served, previous_response_id=response.id)
    assert error.value.param == "previous_response_id"
    served.client.responses.cancel(response.id)


def test_its_events_can_be_followed_again_from_any(serve):
    served = serve(ANSWER)
    events = [event.to_dict() for event in begin(served, stream=True)]
    assert [event["type"] for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert [event["response"]["status"] for event in events[:3]] == [
        "queued",
        "queued",
        "in_progress",
    ]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert events[-1]["type"] == "response.completed"
    id = events[0]["response"]["id"]
    retrieve = served.client.responses.retrieve
    assert [event.to_dict() for event in retrieve(id, stream=True)] == events
    for after in (0, 5, len(events) - 2, len(events) - 1, 10**9):
        again = [event.to_dict() for event in retrieve(id, stream=True, starting_after=after)]
        assert again == events[after + 1 :]
    with served.client.responses.stream(response_id=id, starting_after=2) as stream:
        assert stream.get_final_response().output_text == "Forty-two, é!"


def test_a_client_that_hangs_up_may_come_back_while_it_runs(serve):
    served = serve(ANSWER)
    served.engine.may_step.clear()
    with begin(served, stream=True) as stream:
        first = next(iter(stream))
    followed: list[str] = []

    def follow():
        for event in served.client.responses.retrieve(first.response.id, stream=True):
            followed.append(event.type)

    threads = [threading.Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: followed.count("response.queued") == 2)
    served.engine.may_step.set()
    for thread in threads:
        thread.join(300)
    assert followed.count("response.completed") == 2
    assert not served.engine.aborted


def test_one_that_is_cancelled_keeps_what_it_had(serve):
    served = serve(ENDLESS)
    served.engine.endless = True
    response = begin(served)
    responses = served.client.responses
    assert eventually(lambda: len(responses.retrieve(response.id).output_text) > 2)
    cancelled = responses.cancel(response.id)
    assert cancelled.status == "cancelled"
    assert cancelled.output_text.startswith("onn")
    assert [item.status for item in cancelled.output] == ["completed", "incomplete"]
    assert eventually(lambda: served.engine.aborted == [0])
    assert responses.cancel(response.id) == responses.retrieve(response.id) == cancelled
    last = [*responses.retrieve(response.id, stream=True)][-1]
    assert (last.type, last.response.status) == ("response.incomplete", "cancelled")
    assert 'ossia_requests_total{outcome="cancelled"} 1.0' in served.get("/metrics")[1]


def test_only_one_in_the_background_can_be_cancelled_or_followed(serve):
    served = serve(ANSWER, ANSWER)
    responses = served.client.responses
    response = responses.create(model="tiny", input="?")
    with pytest.raises(openai.BadRequestError, match="not made in the background"):
        responses.cancel(response.id)
    with pytest.raises(openai.BadRequestError, match="not made in the background") as error:
        responses.retrieve(response.id, stream=True)
    assert error.value.param == "stream"
    done = ended(served, begin(served).id)
    assert responses.cancel(done.id) == done
    for call in (responses.cancel, responses.retrieve):
        with pytest.raises(openai.NotFoundError):
            call("resp_none")


def test_one_that_is_deleted_ends(serve):
    served = serve(ENDLESS)
    served.engine.endless = True
    response = begin(served)
    assert eventually(lambda: bool(served.engine.running))
    served.client.responses.delete(response.id)
    assert eventually(lambda: served.engine.aborted == [0])
    with pytest.raises(openai.NotFoundError):
        served.client.responses.retrieve(response.id)


def test_one_that_fails_says_so(serve):
    served = serve(ANSWER)
    served.engine.broken = {0}
    failed = ended(served, begin(served).id)
    assert failed.status == "failed"
    assert "not finite" in failed.error.message
    last = [*served.client.responses.retrieve(failed.id, stream=True)][-1]
    assert (last.type, last.response.error) == ("response.failed", failed.error)


def test_one_that_cannot_be_kept_fails_and_says_so_to_those_who_follow_it(serve):
    class Full(ResponseStore):
        def put(self, kept: Kept, *, running: bool = False) -> None:
            if not running:
                raise OssiaError("the response cannot be kept: the disk is full")
            super().put(kept, running=running)

    served = serve(ANSWER, store=Full())
    events = [*begin(served, stream=True)]
    last = events[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert "the disk is full" in last.response.error.message
    assert eventually(lambda: "ossia_background_responses 0.0" in served.get("/metrics")[1])
    assert served.client.responses.retrieve(last.response.id).status == "failed"


def test_after_a_restart_it_is_there_and_one_that_ran_has_failed(serve, tmp_path: Path):
    file = tmp_path / "responses.sqlite"
    store = ResponseStore(file)
    served = serve(ANSWER, store=store)
    events = [event.to_dict() for event in begin(served, stream=True)]
    done = served.client.responses.retrieve(events[0]["response"]["id"])
    running = done.to_dict() | {"id": "resp_ran", "status": "queued", "output": []}
    store.put(Kept(running, []), running=True)
    store.close()
    again = serve(ANSWER, store=ResponseStore(file))
    responses = again.client.responses
    assert responses.retrieve(done.id) == done
    assert [event.to_dict() for event in responses.retrieve(done.id, stream=True)] == events
    died = responses.retrieve("resp_ran")
    assert (died.status, died.error.code) == ("failed", "server_error")
    (last,) = responses.retrieve("resp_ran", stream=True, starting_after=7)
    assert (last.type, last.sequence_number) == ("response.failed", 8)
    assert begin(again, previous_response_id=done.id).status == "queued"


def test_a_queue_that_is_full_takes_none(serve):
    served = serve(ANSWER, max_queue=1)
    served.engine.may_step.clear()
    begin(served)
    with pytest.raises(openai.RateLimitError):
        begin(served)
    served.engine.may_step.set()


def test_the_parameters_of_the_query_are_checked(serve):
    served = serve(ANSWER)
    id = ended(served, begin(served).id).id
    for query, param in (
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=perhaps", "stream"),
        ("include_obfuscation=true", "include_obfuscation"),
        ("include[]=file_search_call.results", "include"),
        ("order=asc", "order"),
    ):
        status, answer = served.get(f"/v1/responses/{id}?{query}")
        assert (status, json.loads(answer)["error"]["param"]) == (400, param), query
    assert served.get(f"/v1/responses/{id}?include_obfuscation=false")[0] == 200
