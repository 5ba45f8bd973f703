"""The x-ray of a streamed reply: a second pass over a tiny model, seen by clients and the page."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import ossia
from ossia.api import LLM
from ossia.insight.xray import Look, xray
from tests.serve.conftest import ANSWER, run

pytest.importorskip("fastapi")

QUESTION = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def roomy_folder(model_folder, tmp_path):
    """The tiny model, with room for a prompt in harmony."""
    folder = tmp_path / "roomy"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 4096
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def served(roomy_folder) -> Iterator[SimpleNamespace]:
    """A server of a real model: its port, its LLM and the app."""
    from ossia.serve.app import application
    from ossia.serve.service import Service

    llm = LLM(roomy_folder)
    service = Service(llm, "tiny")
    port, stop = run(application(service))
    yield SimpleNamespace(llm=llm, service=service, port=port, folder=roomy_folder)
    llm.close()
    stop()


def post(port: int, body: dict) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def chunks(port: int, **options) -> list[dict]:
    """The chunks of a greedy answer of twelve tokens."""
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "max_tokens": 12}
    body |= {"temperature": 0, "ignore_eos": True, "reasoning_effort": "low", **options}
    lines = post(port, body)[1].split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def seen(parts: list[dict]) -> list[dict]:
    return [token for chunk in parts for token in chunk.get("xray") or ()]


def said(parts: list[dict]) -> str:
    deltas = [choice["delta"] for chunk in parts for choice in chunk["choices"]]
    return "".join(d.get("content") or d.get("reasoning_content") or "" for d in deltas)


def test_every_token_of_the_reply_is_seen_as_an_x_ray_of_the_whole_sees_it(served):
    plain, parts = chunks(served.port), chunks(served.port, xray=True)
    assert said(plain) == said(parts)
    assert seen(plain) == []
    assert all(not chunk["choices"] for chunk in parts if chunk.get("xray"))
    found = seen(parts)
    assert len(found) == 12
    ask = served.llm.prepare(QUESTION, None, "low", temperature=0, max_tokens=12, ignore_eos=True)
    prompt = [*ask.request.prompt]
    (reply,) = served.llm.generate([prompt], temperature=0, max_tokens=12, ignore_eos=True)
    trace = xray(ossia.load_model(served.folder), [*prompt, *reply.token_ids], effects=False)
    first = len(prompt)
    for n, token in enumerate(found):
        assert token["logprob"] == pytest.approx(float(trace.next_logprob[first + n - 1]), abs=1e-3)
        assert token["entropy"] == pytest.approx(float(trace.entropy[first + n - 1]), abs=1e-3)
        assert token["rank"] == int(trace.next_rank[first + n - 1]) == 1
        mass = trace.token_mass[:, first + n, : Look.REPEAT].mean(0)
        assert torch.allclose(torch.tensor(token["attention"]), mass, atol=1e-3)
        assert token["experts"] == trace.experts[:, first + n].tolist()


def test_several_replies_are_seen_at_once_and_none_changes_another(served):
    from concurrent.futures import ThreadPoolExecutor

    plain = said(chunks(served.port))
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(chunks, served.port, xray=bool(n % 2)) for n in range(6)]
        answers = [future.result(300) for future in futures]
    assert {said(answer) for answer in answers} == {plain}
    assert [len(seen(answer)) for answer in answers] == [0, 12] * 3
    assert seen(answers[1]) == seen(answers[3])


@pytest.mark.parametrize("options", [{"stream": False}, {"n": 2}])
def test_it_is_only_for_one_streamed_answer(served, options):
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "xray": True, **options}
    status, answer = post(served.port, body)
    assert status == 400
    assert "xray is only for stream: true, and for one answer" in answer


def test_only_a_few_are_seen_at_a_time(served):
    """Each takes memory beside the engine's, and its passes hold up everybody."""
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "xray": True}
    body |= {"max_tokens": 12, "ignore_eos": True}
    ask = served.llm.prepare(QUESTION)

    async def held() -> list:
        return [await served.service.watch(ask) for _ in range(4)]

    watches = asyncio.run(held())
    status, answer = post(served.port, body)
    assert (status, "xray is made of 4 replies" in answer) == (429, True)
    watches.pop().close()
    for _ in range(3):  # one after the other
        assert post(served.port, body)[0] == 200


def test_an_engine_without_a_model_says_so(serve):
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "xray": True}
    served = serve(ANSWER)
    gc.disable()  # which could free the places of those that failed
    try:
        answers = [served.post("/v1/chat/completions", body) for _ in range(6)]
    finally:
        gc.enable()
    for status, answer in answers:  # more than are seen at a time
        assert status == 400
        assert "no model here that an x-ray could look into" in answer["error"]["message"]


def test_the_page_shows_it_where_it_is_switched_on(served, browser):
    tab = browser.tab(f"http://127.0.0.1:{served.port}/")
    tab.wait("$('#model').options.length")

    def ask(text: str, articles: int) -> None:
        tab.js("$('#message').focus()")
        tab.type(text)
        tab.press("Enter")
        tab.wait(f"$$('article').length === {articles} && $('#send').title === 'Send'")

    tab.press(",", "Control")
    for name, value in [("temperature", "0"), ("max_tokens", "9")]:
        tab.js(f"$('[name={name}]').focus()")
        tab.type(value)
    tab.press("Escape")
    ask("Hello", 2)
    tab.shows("$$('.xray:not([hidden])').length", 0)
    tab.js("$('[name=xray]').click()")
    ask("Again", 4)
    tab.wait("$$('.xray:not([hidden])').length === 1")
    # The summary follows the tokens, and the last may come after the article has its place.
    made = "$$('article')[3].innerText.match(/([0-9]+ tokens?) · first after/)?.[1]"
    summary = "$('.xray:not([hidden]) summary').innerText"
    tab.wait(f"{summary}.includes('Inside the model · ' + {made})")
    drawn = "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((x) => x)"
    tab.shows(f"$$('.xray:not([hidden]) canvas').map({drawn})", [True, True])
    assert tab.complaints == []
    tab.close()
