"""What stands around the answers: keys, limits, hang-ups, failures, and what the server tells."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
from types import SimpleNamespace

import pytest
import typer

from ossia.cli.main import main
from ossia.errors import DeviceLost
from ossia.serve import server as server_module
from tests.scripted import eventually
from tests.serve.conftest import ANSWER, openai, run

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "a secret"}]}
CHAT = "/v1/chat/completions"


class TestKeys:
    @pytest.mark.parametrize("key", ["one", "two"])
    def test_each_key_opens(self, serve, key):
        status, _ = serve(ANSWER, keys=("one", "two")).post(
            CHAT, BODY, Authorization=f"Bearer {key}"
        )
        assert status == 200

    @pytest.mark.parametrize(
        "header", ["", "Bearer", "Bearer on", "Bearer onetwo", "Basic one", "one"]
    )
    def test_nothing_else_does(self, serve, header):
        served = serve(keys=("one", "two"))
        status, answer = served.post(CHAT, BODY, Authorization=header)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert served.get("/metrics")[0] == 401

    def test_the_client_says_what_was_wrong(self, serve):
        served = serve(keys=("one",))
        served.key = "other"
        with pytest.raises(openai.AuthenticationError, match="API key"):
            served.chat()

    def test_health_needs_none(self, serve):
        served = serve(keys=("one",))
        assert served.get("/health")[0] == served.get("/ready")[0] == 200


class TestLimits:
    def test_a_body_that_is_too_large_is_refused(self, serve):
        served = serve(max_body=1000)
        status, answer = served.post(CHAT, BODY | {"user": "x" * 1000})
        assert (status, answer["error"]["type"]) == (413, "invalid_request_error")

    def test_also_one_that_does_not_say_how_large_it_is(self, serve):
        connection = serve(max_body=1000).connect()
        parts = (b'{"model": "' + b"x" * 400 for _ in range(4))
        connection.request(
            "POST", CHAT, parts, {"Content-Type": "application/json"}, encode_chunked=True
        )
        response = connection.getresponse()
        assert response.status == 413
        assert "larger than" in json.loads(response.read())["error"]["message"]

    def test_a_prompt_that_is_too_long_is_refused(self, serve):
        with pytest.raises(openai.BadRequestError, match="this server takes 50") as error:
            serve(max_prompt=50).chat(content="x" * 60)
        assert error.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="context of 4,096"):
            serve().chat(content="x" * 5000)

    @pytest.mark.parametrize(
        ("path", "asked"),
        [
            (CHAT, {"messages": [{"role": "user", "content": "x" * 10**6}]}),
            (CHAT, {"messages": [{"role": "user", "content": "x" * 1000}] * 200}),
            ("/v1/completions", {"prompt": "x" * 10**6}),
            ("/v1/responses", {"input": "x" * 10**6}),
            ("/v1/responses", {"input": "x" * 10**6, "truncation": "auto"}),
            ("/v1/messages", {"messages": [{"role": "user", "content": "x" * 10**6}]}),
            ("/v1/tokenize", {"prompt": "x" * (2**20 + 1)}),
        ],
    )
    def test_one_that_is_far_too_long_is_not_encoded_to_its_end(self, serve, path, asked):
        served = serve()
        body = {"model": "tiny", **asked} | ({"max_tokens": 9} if "messages" in path else {})
        status, answer = served.post(path, body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        most = "1,048,576" if path == "/v1/tokenize" else "73,728"  # twice the context, and 2**16
        assert f"the prompt has more than {most} tokens" in answer["error"]["message"]
        if "messages" not in path:
            assert answer["error"]["code"] == "context_length_exceeded"
        assert not served.engine.requests

    def test_a_full_queue_asks_to_come_back(self, serve):
        served = serve(ANSWER, ANSWER, max_queue=1)
        served.engine.may_step.clear()
        stream = threading.Thread(target=served.chat)
        stream.start()
        assert eventually(lambda: served.llm.stats().unfinished == 1)
        with pytest.raises(openai.RateLimitError) as error:
            served.chat()
        assert error.value.response.headers["retry-after"] == "1"
        assert error.value.code == "queue_full"
        assert served.get("/ready")[0] == 503
        served.engine.may_step.set()
        stream.join()
        assert served.chat().choices[0].message.content == "Forty-two, é!"

    def test_choices_that_do_not_fit_together_are_all_taken_out(self, serve):
        served = serve(ANSWER, ANSWER, ANSWER, max_queue=2)
        with pytest.raises(openai.RateLimitError):
            served.chat(n=3)
        assert eventually(lambda: served.llm.stats().unfinished == 0)


class TestHangingUp:
    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_hangs_up_leaves_the_engine(self, serve, stream):
        served = serve("<|channel|>final<|message|>on and on", ANSWER)
        served.engine.endless = True
        connection = served.connect()
        body = json.dumps(BODY | {"stream": stream, "n": 1})
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        assert eventually(lambda: bool(served.engine.running))
        if stream:
            connection.getresponse().read(10)
        connection.close()
        if connection.sock is not None:
            connection.sock.close()
        assert eventually(lambda: served.engine.aborted == [0])
        assert served.chat().choices[0].finish_reason == "stop"
        metrics = served.get("/metrics")[1]
        assert 'ossia_requests_total{outcome="cancelled"} 1.0' in metrics

    def test_so_do_all_choices(self, serve):
        served = serve(*["<|channel|>final<|message|>on and on"] * 3)
        served.engine.endless = True
        with served.chat(n=3, stream=True) as stream:
            next(iter(stream))
        assert eventually(lambda: sorted(served.engine.aborted) == [0, 1, 2])


class TestFailures:
    def test_a_request_that_fails_fails_alone(self, serve):
        served = serve(ANSWER, ANSWER)
        served.engine.broken = {0}
        served.engine.may_step.clear()
        failed = []

        def ask():
            with pytest.raises(openai.InternalServerError) as error:
                served.chat()
            failed.append(error.value)

        thread = threading.Thread(target=ask)
        thread.start()
        assert eventually(lambda: served.llm.stats().unfinished == 1)
        stream = served.chat(stream=True)
        served.engine.may_step.set()
        thread.join()
        assert "not finite" in failed[0].message
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"

    def test_a_stream_that_fails_says_so(self, serve):
        served = serve(ANSWER)
        served.engine.broken = {0}
        with pytest.raises(openai.APIError, match="not finite"):
            list(served.chat(stream=True))
        assert 'ossia_requests_total{outcome="failed"} 1.0' in served.get("/metrics")[1]

    def test_a_bug_is_an_error_without_its_details(self, serve, monkeypatch, caplog):
        served = serve(ANSWER)
        monkeypatch.setattr(served.llm, "prepare", lambda *_, **__: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="its log says why") as error:
            served.chat()
        assert "division" not in error.value.message

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"{", "not JSON"),
            (b"[1]", "JSON object"),
            (b"", "JSON object"),
            (b"[" * 100_000, ""),
            (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "?"}]}', ""),
            (b'{"temperature": NaN}', ""),
        ],
    )
    def test_a_body_that_cannot_be_read_is_the_clients_fault(self, serve, data, message):
        status, answer = serve().post(CHAT, data)
        assert 400 <= status < 500
        assert message in answer["error"]["message"]

    def test_an_unknown_path_is_named(self, serve):
        status, answer = serve().post("/v1/embeddings", {})
        assert status == 404
        assert "POST /v1/embeddings" in answer["error"]["message"]


class TestWhatItTells:
    def test_the_model(self, serve):
        client = serve().client
        (model,) = client.models.list().data
        assert (model.id, model.owned_by, model.max_model_len) == ("tiny", "ossia", 4096)
        assert client.models.retrieve("tiny") == model
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")

    def test_the_longest_text_is_what_the_cache_holds(self, model_folder):
        from ossia.api import LLM
        from ossia.serve.app import application
        from ossia.serve.service import Service

        with LLM(model_folder, kv_memory="16KiB") as llm:
            assert llm.about is not None
            assert llm.about.max_length < llm.config.context_length
            port, stop = run(application(Service(llm, "tiny")))
            url = f"http://127.0.0.1:{port}/v1"
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300)
            try:
                assert client.models.retrieve("tiny").max_model_len == llm.about.max_length
            finally:
                stop()

    def test_tokens_there_and_back(self, serve):
        served = serve()
        status, answer = served.post("/v1/tokenize", {"model": "tiny", "prompt": "é <|end|>"})
        assert (status, answer["count"]) == (200, len("é <|end|>".encode()))
        assert answer["max_model_len"] == 4096
        assert served.post("/v1/detokenize", {"tokens": answer["tokens"]}) == (
            200,
            {"prompt": "é <|end|>"},
        )

    def test_tokens_of_a_conversation_are_those_of_its_prompt(self, serve):
        served = serve(ANSWER)
        served.post(CHAT, BODY)
        _, answer = served.post("/v1/tokenize", {"messages": BODY["messages"]})
        assert answer["tokens"] == served.engine.requests[0].prompt

    @pytest.mark.parametrize("token", [-1, 10**6, 2**70])
    def test_ids_outside_the_vocabulary_are_refused(self, serve, token):
        status, answer = serve().post("/v1/detokenize", {"tokens": [1, token]})
        assert (status, answer["error"]["param"]) == (400, "tokens[1]")

    def test_figures(self, serve):
        served = serve(ANSWER)
        served.chat()
        answered = 'ossia_http_responses_total{path="/v1/chat/completions",status="200"} 1.0\n'
        assert eventually(lambda: answered in served.get("/metrics")[1])  # once it has been sent
        figures = dict(
            line.rsplit(" ", 1) for line in served.get("/metrics")[1].splitlines() if line[0] != "#"
        )
        assert figures['ossia_requests_total{outcome="stop"}'] == "1.0"
        assert figures["ossia_reasoning_tokens_total"] == "3.0"
        for name in ("time_to_first_token", "time_per_output_token", "generation"):
            assert figures[f"ossia_{name}_seconds_count"] == "1.0"
        for name in ("unfinished", "running", "waiting", "kv_evictions_total", "preemptions_total"):
            assert f"ossia_{name}" in figures
        assert figures["ossia_drafted_tokens_total"] == "7.0"
        assert figures["ossia_accepted_tokens_total"] == "5.0"

    def test_a_document_that_names_what_there_is(self, serve):
        document = json.loads(serve().get("/openapi.json")[1])
        assert {CHAT, "/v1/completions", "/v1/models", "/metrics"} <= document["paths"].keys()
        schemas = document["components"]["schemas"]
        references = {
            part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]
        }
        assert references <= schemas.keys()
        assert "logit_bias" in schemas["ChatRequest"]["properties"]
        assert schemas["ChatRequest"]["additionalProperties"] == {"type": "null"}
        for path in (CHAT, "/v1/completions", "/v1/messages", "/v1/responses"):
            content = document["paths"][path]["post"]["responses"]["200"]["content"]
            assert content.keys() == {"application/json", "text/event-stream"}
        assert "422" not in document["paths"][CHAT]["post"]["responses"]
        assert schemas["ChatRequest"]["properties"]["model"]["enum"] == ["tiny"]

    @pytest.mark.parametrize(
        ("path", "name", "required"),
        [
            (CHAT, "ChatRequest", BODY),
            ("/v1/completions", "CompletionRequest", {"model": "tiny", "prompt": "?"}),
            ("/v1/responses", "ResponseRequest", {"model": "tiny", "input": "?"}),
            ("/v1/messages", "MessagesRequest", BODY | {"max_tokens": 99}),
        ],
    )
    def test_null_is_taken_and_documented_for_what_may_be_absent(self, serve, path, name, required):
        served = serve(ANSWER)
        schema = json.loads(served.get("/openapi.json")[1])["components"]["schemas"][name]
        assert {*schema["required"]} == required.keys()
        optional = schema["properties"].keys() - required.keys()
        for each in optional:
            value = schema["properties"][each]
            assert {"type": "null"} in value.get("anyOf", [{"type": "null"}]), each
        assert served.post(path, required | dict.fromkeys(optional))[0] == 200

    def test_another_method_is_405_with_those_that_there_are(self, serve):
        connection = serve().connect()
        for path, methods in ((CHAT, "POST"), ("/v1/responses/resp_1", "DELETE, GET")):
            connection.request("PATCH", path)
            response = connection.getresponse()
            response.read()
            assert (response.status, response.headers["Allow"]) == (405, methods)

    def test_no_page_of_another_site_may_read_it(self, serve):
        connection = serve().connect()
        connection.request("GET", "/v1/models", headers={"Origin": "http://evil.example"})
        headers = {name.lower() for name in connection.getresponse().headers}
        assert not any(name.startswith("access-control") for name in headers)

    def test_the_log_has_a_line_for_each_request_and_not_its_content(self, serve, caplog):
        caplog.set_level(logging.DEBUG, "ossia")
        served = serve(ANSWER)
        served.chat(content="a secret")
        assert eventually(lambda: "POST /v1/chat/completions 200" in caplog.text)
        assert "secret" not in caplog.text
        assert "Forty" not in caplog.text

    def test_what_browsers_and_probes_fetch_is_logged_if_it_fails(self, serve, caplog):
        caplog.set_level(logging.INFO, "ossia")
        served = serve()
        for path in ("/", "/page/app.js", "/health", "/ready", "/metrics"):
            assert served.get(path)[0] == 200
        served.post("/health", {})
        served.get("/v1/models")
        assert eventually(lambda: "GET /v1/models 200" in caplog.text)
        lines = [r.getMessage() for r in caplog.records if r.name == "ossia.serve.gate"]
        assert [line.rsplit(maxsplit=3)[0] for line in lines] == [
            "POST /health 405",
            "GET /v1/models 200",
        ]


class TestLostDevice:
    """The engine's GPU stops in the middle of an answer."""

    def test_everyone_is_told(self, serve, monkeypatch):
        served = serve(ANSWER)
        assert served.get("/health")[0] == 200

        def step():
            raise DeviceLost("cuda:0 computes no more in this process: an illegal access")

        monkeypatch.setattr(served.engine, "step", step)
        for _ in range(2):  # the one that meets it, and the next
            status, answer = served.post(CHAT, BODY)
            assert (status, answer["error"]["code"]) == (503, "device_lost")
            assert "computes no more in this process" in answer["error"]["message"]
        assert eventually(lambda: served.get("/ready")[0] == 503)
        for path in ("/health", "/ready"):
            status, answer = served.get(path)
            assert status == 503
            assert json.loads(answer)["error"]["code"] == "device_lost"
        assert served.get("/metrics")[0] == 200

    def test_the_server_ends_and_its_exit_code_is_1(self, monkeypatch, capsys):
        """The loop of the real server, without a model behind it. By its clock, the time in which
        it tells of the fault is over once a client has been told.
        """
        fault = DeviceLost("cuda:0 computes no more in this process: an illegal access")
        told: list[int] = []
        over = threading.Event()
        clock = SimpleNamespace(monotonic=lambda: 1000.0 if over.is_set() else 0.0)
        monkeypatch.setattr(server_module, "time", clock)

        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                for event in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{event}.complete"})
                return
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        def ask(port: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
            try:
                connection.request("GET", "/health")
                told.append(connection.getresponse().status)
            finally:
                over.set()

        commands = typer.Typer()

        @commands.command()
        def serve() -> None:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                asking = threading.Thread(target=ask, args=(listening.getsockname()[1],))
                asking.start()
                server_module.serve(app, listening, 5, set(), lambda: fault)
                asking.join()

        assert main([], commands) == 1
        assert told == [503]
        assert capsys.readouterr().err.split() == f"error: {fault}".split()
