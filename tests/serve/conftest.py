"""Servers on a free port of this machine, over a scripted engine, for the length of a test."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ossia import text
from ossia.api import LLM
from ossia.engine import Driver
from tests.babble import Babbler
from tests.engine.engines import engine as build_engine
from tests.scripted import ScriptedEngine, eventually, small_config
from tests.serve import chromium

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

ANSWER = (
    "<|channel|>analysis<|message|>Hm.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Forty-two, é!<|return|>"
)
CALL = (
    "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>'
)


@dataclass
class Served:
    """A server, the engine behind it, and OpenAI's client before it."""

    llm: LLM
    engine: ScriptedEngine
    port: int
    key: str
    store: Any  # of its responses
    service: Any
    app: Any

    @property
    def client(self) -> Any:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key=self.key, max_retries=0, timeout=300)

    def chat(self, *, content: str = "?", **options: Any) -> Any:
        """One question through the client; options that the client lacks go as they are."""
        messages = options.pop("messages", [{"role": "user", "content": content}])
        options = {"model": "tiny", "messages": messages, **options}
        return self.client.chat.completions.create(**options)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """The status and the JSON that answers a body, given as JSON or as bytes."""
        connection = self.connect()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        connection = self.connect()
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def prompt(self, n: int = -1) -> str:
        """What the engine was asked to continue."""
        return self.llm.tokenizer.decode(self.engine.requests[n].prompt)


def end_after(served: Served, steps: int) -> None:
    """Have the time of each request be over when the engine has made so many steps since it began,
    however long a loaded machine takes for them.
    """
    start, step = served.service.start, served.engine.step
    latest: list[Any] = []  # what runs, and the steps that are left of its time

    def started(*given: Any) -> Any:
        running = start(*given)
        latest[:] = running, asyncio.get_running_loop(), [None] * steps
        return running

    def stepped() -> Any:
        if latest and latest[2]:
            latest[2].pop()
            if not latest[2]:
                latest[1].call_soon_threadsafe(latest[0].time_out)
        return step()

    served.service.start, served.engine.step = started, stepped


Serve = Callable[..., Served]


def run(app: Any, lifespan: Any = "off") -> tuple[int, Callable[[], None]]:
    """Serve an ASGI application. Returns its port and what stops it."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan=lifespan, log_level="error", timeout_keep_alive=300)
    server = uvicorn.Server(config)  # a test may be held up for longer than uvicorn's 5 seconds
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    assert eventually(lambda: server.started)

    def stop() -> None:
        server.should_exit = server.force_exit = True
        thread.join(300)

    return listening.getsockname()[1], stop


@pytest.fixture
def serve(bytes_folder) -> Iterator[Serve]:
    """serve(*scripts) starts a server that answers with them; serve(babbling=True) one whose model
    writes any token.
    """
    from ossia.serve.app import application
    from ossia.serve.entrance import Rules
    from ossia.serve.origins import Pages
    from ossia.serve.responses.store import ResponseStore
    from ossia.serve.service import Service

    stops: list[Callable[[], None]] = []

    def start(
        *scripts: str,
        max_queue: int = 1024,
        store: Any = None,
        babbling: bool = False,
        **options: Any,
    ) -> Served:
        tokenizer = text.load_tokenizer(bytes_folder)
        encoded = [tokenizer.encode_control(script) for script in scripts]
        engine: Any = ScriptedEngine(encoded, small_config())
        if babbling:
            engine = build_engine(Babbler(tokenizer))
        chat_format = text.load_format(bytes_folder, tokenizer)
        llm = LLM.from_parts(Driver(engine, max_queue), tokenizer, chat_format)
        asked = {
            name: options.pop(name) for name in ("keys", "max_body", "pages") if name in options
        }
        rules = Rules(**{"seconds": options.get("timeout"), "pages": Pages(), **asked})
        service = Service(llm, "tiny", **options)
        store = store or ResponseStore()
        app = application(service, rules, store=store)
        port, close = run(app)

        def stop() -> None:
            if isinstance(engine, ScriptedEngine):
                engine.may_step.set()
            llm.close()
            close()

        stops.append(stop)
        return Served(llm, engine, port, [*rules.keys, "none"][0], store, service, app)

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def visit(browser, serve) -> Iterator[Callable[..., tuple[chromium.Tab, Served]]]:
    """visit(*scripts) opens the page of a server that answers with them."""
    tabs: list[chromium.Tab] = []

    def start(*scripts: str, **options: Any) -> tuple[chromium.Tab, Served]:
        served = serve(*scripts, **options)
        tab = browser.tab(f"http://127.0.0.1:{served.port}/")
        tabs.append(tab)
        tab.wait("$('#model').options.length || !$('#notice').hidden")
        return tab, served

    yield start
    for tab in tabs:
        tab.close()
