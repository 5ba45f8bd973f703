"""The front end before replicas that run in this process: where requests go, and what becomes of
them when a replica dies.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from ossia import text
from ossia.api import LLM
from ossia.engine import Driver
from ossia.errors import DeviceLost
from tests.scripted import ScriptedEngine, eventually, small_config
from tests.serve.conftest import ANSWER, openai, run

pytest.importorskip("fastapi")

from ossia.serve.app import application
from ossia.serve.entrance import Rules, entrance
from ossia.serve.gate import Message
from ossia.serve.replicas import front as front_module
from ossia.serve.replicas.answer import Answer
from ossia.serve.replicas.balance import Balance
from ossia.serve.replicas.front import Front
from ossia.serve.replicas.prefix import BLOCK, MOST_BLOCKS, Known, chain
from ossia.serve.replicas.records import RemoteStore, SharedRecords
from ossia.serve.replicas.replica import Asked, Beat, ReplicaLost, ReplicaUnreachable
from ossia.serve.replicas.worker import Worker
from ossia.serve.responses.store import Kept, ResponseStore
from ossia.serve.service import Service

CHAT = "/v1/chat/completions"
ENDLESS = "<|channel|>final<|message|>on"


Make = Callable[[str], tuple[Worker, LLM, ScriptedEngine]]


class Local:
    """A replica in this process, whose process can be said to die and to start again."""

    def __init__(self, name: str, make: Make, dead: set[str]) -> None:
        self.name, self._make, self._dead = name, make, dead
        self._starts, self._gone = 0, asyncio.Event()
        self.start()

    def start(self) -> None:
        self._starts += 1
        self.run = f"{self.name}.{self._starts}"
        self.worker, self.llm, self.engine = self._make(self.run)
        self.alive = True

    def die(self) -> None:
        """To be called in the front end's loop."""
        self.alive = False
        self._dead.add(self.run)
        self._gone.set()
        self._gone = asyncio.Event()
        self.engine.may_step.set()
        threading.Thread(target=self.llm.close).start()

    def send(self, asked: Asked) -> AsyncGenerator[Sequence[Message]]:
        return self._until_death(self.worker.answer(asked))

    async def beats(self) -> AsyncGenerator[Beat]:
        while not self.alive:  # as Ray Serve does, which queues a call until there is a process
            await asyncio.sleep(0.01)
        async with aclosing(self._until_death(self.worker.beats())) as beats:
            async for beat in beats:
                yield beat

    async def _until_death(self, items: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
        gone, following = asyncio.ensure_future(self._gone.wait()), None
        try:
            while self.alive:
                following = asyncio.ensure_future(anext(items, None))
                await asyncio.wait((following, gone), return_when="FIRST_COMPLETED")
                if gone.done():
                    break
                if (item := following.result()) is None:
                    return
                yield item
            raise ReplicaLost(self.name)
        finally:
            waited = [one for one in (gone, following) if one is not None]
            for one in waited:
                one.cancel()
            await asyncio.gather(*waited, return_exceptions=True)
            await items.aclose()


class LocalRecords:
    def __init__(self, records: SharedRecords) -> None:
        self.shared = records

    async def running_in(self, id: str) -> str | None:
        return self.shared.running_in(id)

    async def lost(self, run: str) -> None:
        self.shared.lost(run)

    async def size(self) -> tuple[int, int]:
        return self.shared.size()


class Fleet:
    """Replicas behind one port."""

    def __init__(self, replicas: list[Local], records: SharedRecords, **options: Any) -> None:
        keys = options.pop("keys", ())
        self.replicas = replicas
        self.front = Front(replicas, LocalRecords(records), **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        behind = entrance(self.front, Rules(keys, max_body=2**20), self.front.figures)

        async def app(scope: Message, receive: Any, send: Any) -> None:
            self._loop = asyncio.get_running_loop()
            await behind(scope, receive, send)

        self._port, self.stop = run(app, "on")
        self.key = keys[0] if keys else "none"

    @property
    def client(self) -> Any:
        url = f"http://127.0.0.1:{self._port}/v1"
        return openai.OpenAI(base_url=url, api_key=self.key, max_retries=0, timeout=300)

    def chat(self, content: str = "?", **options: Any) -> Any:
        messages = options.pop("messages", [{"role": "user", "content": content}])
        return self.client.chat.completions.create(model="tiny", messages=messages, **options)

    def get(self, path: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.key}"})
        return connection.getresponse()

    def post(self, path: str, body: Any) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        return connection.getresponse()

    def figure(self, line: str) -> bool:
        """Whether the page of figures comes to have this line."""
        return eventually(lambda: f"\n{line}\n" in self.get("/metrics").read().decode())

    def kill(self, n: int) -> None:
        self._there(self.replicas[n].die)

    def start(self, n: int) -> None:
        self._there(self.replicas[n].start)

    def hold(self) -> None:
        """Have no engine make a token."""
        for replica in self.replicas:
            replica.engine.may_step.clear()

    def go_on(self) -> None:
        for replica in self.replicas:
            replica.engine.may_step.set()

    @property
    def asked(self) -> list[int]:
        """How many requests each replica's engine has been given since it was started."""
        return [len(replica.engine.requests) for replica in self.replicas]

    def busy(self) -> int:
        """The replica that has a request, once one has."""
        assert eventually(lambda: any(self.asked))
        return self.asked.index(max(self.asked))

    def _there(self, do: Callable[[], None]) -> None:
        """Do something in the front end's loop."""
        assert self._loop is not None
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (do(), done.set()))
        assert done.wait(300)


@pytest.fixture
def fleet(bytes_folder) -> Iterator[Callable[..., Fleet]]:
    """fleet(*scripts) starts two replicas, each of which answers with these."""
    started: list[Fleet] = []

    def start(*scripts: str, count: int = 2, max_queue: int = 1024, **options: Any) -> Fleet:
        tokenizer = text.load_tokenizer(bytes_folder)
        chat_format = text.load_format(bytes_folder, tokenizer)
        endless = options.pop("endless", False)
        records, dead = SharedRecords(ResponseStore()), set[str]()

        def make(run: str) -> tuple[Worker, LLM, ScriptedEngine]:
            encoded = [tokenizer.encode_control(script) for script in scripts or (ANSWER,) * 8]
            engine = ScriptedEngine(encoded, small_config())
            engine.endless = endless
            llm = LLM.from_parts(Driver(engine, max_queue), tokenizer, chat_format)

            def call(name: str, *given: Any) -> Any:
                if run in dead:
                    raise ReplicaLost(run)
                return getattr(records, name)(*given)

            remote = RemoteStore(call, run)
            app = application(Service(llm, "tiny"), store=remote)
            return Worker(app, llm, run, 2**16), llm, engine

        one = Fleet([Local(str(n), make, dead) for n in range(count)], records, **options)
        started.append(one)
        return one

    yield start
    for one in started:
        one.go_on()
        for replica in one.replicas:
            replica.llm.close()
        one.stop()


LONG = "Tell me of a town that lies where two rivers meet. " * 20
OTHER = "Write a function that sorts a list of pairs by value. " * 20


def turn(question: str, *more: str) -> list[dict[str, str]]:
    said = [{"role": "user", "content": question}]
    for n, content in enumerate(more):
        said.append({"role": ("assistant", "user")[n % 2], "content": content})
    return said


class TestRouting:
    def test_a_conversation_stays_with_the_replica_that_has_read_it(self, fleet):
        one = fleet()
        one.chat(LONG)
        first = one.busy()
        one.chat(OTHER)
        assert sorted(one.asked) == [1, 1]
        one.chat(messages=turn(LONG, "Forty-two", "And then?"))
        assert one.asked[first] == 2
        one.chat(messages=turn(OTHER, "Forty-two", "And then?"))
        assert one.asked == [2, 2]
        assert one.figure(f'ossia_routed_requests_total{{replica="{first}"}} 2.0')

    def test_a_queue_costs_more_than_a_short_beginning(self, fleet):
        one = fleet(ENDLESS, ENDLESS, ENDLESS, ENDLESS, endless=True)
        streams = [iter(one.chat(LONG[:150], stream=True)) for _ in range(2)]
        for stream in streams:
            next(stream)
        assert one.asked == [1, 1]

    def test_by_turns_it_does_not(self, fleet):
        one = fleet(balance=Balance(aware=False))
        for _ in range(4):
            one.chat(LONG)
        assert one.asked == [2, 2]

    def test_a_full_replica_passes_a_request_on_and_the_last_one_refuses_it(self, fleet):
        one = fleet(ENDLESS, ENDLESS, endless=True, max_queue=1)
        streams = [iter(one.chat(LONG, stream=True)) for _ in range(2)]
        for stream in streams:
            next(stream)
        assert one.asked == [1, 1]
        with pytest.raises(openai.RateLimitError, match="the server is busy"):
            one.chat(LONG)
        assert eventually(lambda: one.get("/ready").status == 503)


def opening(path: str, content: str = "?") -> tuple[str, dict[str, Any]]:
    if path == "/v1/responses":
        return path, {"model": "tiny", "input": content, "stream": True}
    if path == "/v1/completions":
        return path, {"model": "tiny", "prompt": content, "max_tokens": 50, "stream": True}
    body = {"model": "tiny", "messages": turn(content), "max_tokens": 50, "stream": True}
    return path, body


GENERATING = (CHAT, "/v1/responses", "/v1/messages", "/v1/completions")


class TestDeaths:
    @pytest.mark.parametrize("path", GENERATING)
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_what_has_not_begun_is_answered_by_another(self, fleet, path, stream):
        one = fleet(*[ANSWER] * 4)
        one.hold()
        _, body = opening(path)
        answers: list[tuple[int, str]] = []

        def ask() -> None:
            response = one.post(path, body | {"stream": stream})
            answers.append((response.status, response.read().decode()))

        thread = threading.Thread(target=ask)
        thread.start()
        victim = one.busy()
        one.kill(victim)
        one.go_on()
        thread.join(300)
        ((status, told),) = answers
        assert status == 200
        assert "replica_lost" not in told
        assert stream or "Forty-two" in told
        assert told.count('"role":"assistant","content":""') <= 1
        assert told.count("event: response.created") <= 1
        assert one.figure("ossia_retried_requests_total 1.0")
        assert one.figure(f'ossia_replica_up{{replica="{victim}"}} 0.0')
        assert one.get("/ready").status == 200

    @pytest.mark.parametrize("path", GENERATING)
    def test_a_stream_that_has_begun_ends_with_an_error(self, fleet, path):
        one = fleet(ENDLESS, endless=True)
        response = one.post(*opening(path))
        assert response.status == 200
        while b"on" not in response.readline():
            pass
        one.kill(one.busy())
        last = response.read().decode().strip().split("\n\n")[-1]
        assert "the replica that wrote this answer died" in last
        assert last.startswith("data: {" if path in (CHAT, "/v1/completions") else "event: error\n")
        assert one.figure("ossia_broken_streams_total 1.0")

    def test_one_that_dies_after_its_answer_breaks_nothing(self, fleet):
        one = fleet()
        for replica in one.replicas:

            async def send(asked: Asked, first: Any = replica.send) -> AsyncGenerator[Any]:
                async with aclosing(first(asked)) as batches:
                    async for batch in batches:
                        yield batch
                raise ReplicaLost("killed when it had sent all")

            replica.send = send
        chunks = list(one.chat(stream=True))
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert one.figure("ossia_broken_streams_total 0.0")

    def test_a_request_under_which_two_die_is_refused(self, fleet):
        one = fleet(count=3)
        one.hold()
        failed: list[Any] = []

        def ask() -> None:
            with pytest.raises(openai.InternalServerError) as error:
                one.chat()
            failed.append(error.value)

        thread = threading.Thread(target=ask)
        thread.start()
        first = one.busy()
        one.kill(first)
        assert eventually(lambda: sum(one.asked) == 2)
        one.kill(next(n for n in range(3) if n != first and one.asked[n]))
        thread.join(300)
        assert (failed[0].status_code, failed[0].code) == (502, "replica_lost")
        assert one.get("/ready").status == 200

    def test_without_any_a_request_waits_until_one_is_back(self, fleet):
        one = fleet()
        for n in (0, 1):
            one.kill(n)
        assert eventually(lambda: one.get("/ready").status == 503)
        timer = threading.Timer(0.3, one.start, (1,))
        timer.start()
        assert one.chat().choices[0].message.content == "Forty-two, é!"
        assert one.figure('ossia_replica_up{replica="1"} 1.0')
        timer.join()

    def test_and_is_refused_if_none_comes_back(self, fleet):
        one = fleet(wait_seconds=0.05)
        for n in (0, 1):
            one.kill(n)
        assert eventually(lambda: one.get("/ready").status == 503)
        with pytest.raises(openai.InternalServerError, match="no replica is up"):
            one.chat()
        assert one.get("/health").status == 200

    @pytest.mark.parametrize("path", GENERATING)
    def test_a_lost_device_takes_no_more_requests(self, fleet, path):
        one = fleet(count=2)

        def step() -> Any:
            raise DeviceLost("the GPU fell off the bus")

        one.replicas[0].engine.step = step
        _, body = opening(path)
        for _ in range(3):
            assert one.post(path, body | {"stream": False}).status == 200
        assert one.asked == [1, 3]
        assert one.figure('ossia_replica_up{replica="0"} 0.0')
        one.start(0)
        assert one.figure('ossia_replica_up{replica="0"} 1.0')

    def test_a_client_that_hangs_up_takes_its_request_out_of_the_engine(self, fleet):
        one = fleet(ENDLESS, ENDLESS, endless=True)
        stream = one.chat(stream=True)
        next(iter(stream))
        engine = one.replicas[one.busy()].engine
        stream.close()
        assert eventually(lambda: engine.aborted == [0])


class TestResponses:
    def ask(self, one: Fleet, **options: Any) -> Any:
        return one.client.responses.create(model="tiny", **{"input": LONG, **options})

    def other(self, one: Fleet, n: int) -> None:
        """Have the next request go elsewhere than to replica n."""
        one.front.places[n].running += 100

    def test_any_replica_knows_what_another_has_answered(self, fleet):
        one = fleet()
        first = self.ask(one, include=["reasoning.encrypted_content"])
        n = one.busy()
        again = self.ask(one, input="More", previous_response_id=first.id)
        assert one.asked[n] == 2
        self.other(one, n)
        sealed = first.output[0].model_dump(exclude={"content", "status"})
        assert self.ask(one, input="More", previous_response_id=again.id).status == "completed"
        assert self.ask(one, input=[sealed, *turn("More")]).status == "completed"
        assert one.asked[n] == 2
        items = one.client.responses.input_items.list(again.id)
        assert len(items.data) == 4
        one.client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            one.client.responses.retrieve(first.id)
        assert one.figure("ossia_kept_responses 3.0")

    def test_one_in_the_background_is_found_and_ended_where_it_runs(self, fleet):
        one = fleet(ENDLESS, ENDLESS, endless=True)
        made = self.ask(one, background=True)
        n = one.busy()
        self.other(one, n)
        retrieve = one.client.responses.retrieve
        assert eventually(lambda: retrieve(made.id).status == "in_progress")
        events = retrieve(made.id, stream=True)
        assert next(iter(events)).type == "response.created"
        with pytest.raises(openai.BadRequestError, match="not complete yet"):
            self.ask(one, input="More", previous_response_id=made.id)
        one.client.responses.cancel(made.id)
        assert retrieve(made.id).status == "cancelled"
        assert eventually(lambda: one.replicas[n].engine.aborted == [0])
        assert eventually(lambda: not one.front.tasks)

    def test_it_fails_with_its_replica(self, fleet):
        one = fleet(ENDLESS, endless=True)
        made = self.ask(one, background=True)
        one.kill(one.busy())
        retrieve = one.client.responses.retrieve
        assert eventually(lambda: retrieve(made.id).status == "failed")
        assert "stopped before" in retrieve(made.id).error.message
        assert eventually(lambda: not one.front.tasks)


class Scripted:
    """A replica that beats and answers, or fails to, when a test says so."""

    name = "0"

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Beat | Exception] = asyncio.Queue()
        self.answers: list[asyncio.Queue[Message | Exception]] = []  # by requests

    async def beats(self) -> AsyncGenerator[Beat]:
        while True:
            yield _raised(await self.heard.get())

    async def send(self, asked: Asked) -> AsyncGenerator[Sequence[Message]]:
        self.answers.append(messages := asyncio.Queue())
        going = True
        while going:
            message = _raised(await messages.get())
            going = message.get("more_body", True)
            yield [message]


def _raised(item: Any) -> Any:
    if isinstance(item, Exception):
        raise item
    return item


class Lost:
    """Records that note which runs they are told are lost. running: of the one response."""

    def __init__(self, running: str | None = None) -> None:
        self.runs: list[str] = []
        self.fails = False
        self._running = running

    async def running_in(self, id: str) -> str | None:
        return self._running

    async def lost(self, run: str) -> None:
        if self.fails:
            self.fails = False
            raise RuntimeError("the records are away")
        self.runs.append(run)

    async def size(self) -> tuple[int, int]:
        return 0, 0


def head(status: int = 200, kind: bytes = b"application/json") -> Message:
    headers = [(b"content-type", kind)]
    return {"type": "http.response.start", "status": status, "headers": headers}


def part(body: bytes, more_body: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


class Desk:
    """A front end before one replica, without a socket."""

    def __init__(self, records: Lost) -> None:
        self.replica, self.records = Scripted(), records
        self.front = Front([self.replica], records)
        (self.place,) = self.front.places

    async def hear(self, *items: Beat | Exception, up: bool, run: str | None) -> None:
        for item in items:
            self.replica.heard.put_nowait(item)
        await until(lambda: (self.place.up, self.place.run) == (up, run))

    def ask(self, path: str, body: Any = None) -> asyncio.Task[list[Message]]:
        return asyncio.create_task(self._asked(path, body))

    async def _asked(self, path: str, body: Any) -> list[Message]:
        sent: list[Message] = []
        unread = [
            {"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}
        ]
        scope = {"type": "http", "path": path, "query_string": b"", "headers": []}

        async def receive() -> Message:
            return unread.pop() if unread else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        await self.front(scope | {"method": "GET" if body is None else "POST"}, receive, send)
        return sent

    async def answers(self, count: int) -> list[asyncio.Queue[Message | Exception]]:
        """Those of so many requests, once they are there."""
        await until(lambda: len(self.replica.answers) == count)
        return self.replica.answers


async def until(condition: Callable[[], bool]) -> None:
    assert await asyncio.to_thread(eventually, condition)


@asynccontextmanager
async def desk(running: str | None = None) -> AsyncGenerator[Desk]:
    one, events = Desk(Lost(running)), asyncio.Queue[Message]()
    events.put_nowait({"type": "lifespan.startup"})
    life = asyncio.create_task(one.front({"type": "lifespan"}, events.get, _nothing))
    try:
        yield one
    finally:
        events.put_nowait({"type": "lifespan.shutdown"})
        await life


async def _nothing(_message: Message) -> None:
    pass


class TestWatching:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch):
        monkeypatch.setattr(front_module, "_LOOK_SECONDS", 0.01)

    def test_no_error_ends_it(self):
        async def test() -> None:
            async with desk() as one:
                await one.hear(Beat("first"), up=True, run="first")
                await one.hear(RuntimeError("what nobody thought of"), up=False, run="first")
                await one.hear(Beat("first"), up=True, run="first")
                assert one.records.runs == []
                one.records.fails = True
                await one.hear(ReplicaLost("dead"), up=False, run="first")
                await one.hear(Beat("second"), up=True, run="second")
                assert one.records.runs == ["first"]

        asyncio.run(test())

    def test_a_late_death_is_not_that_of_the_next_process(self):
        async def test() -> None:
            async with desk() as one:
                await one.hear(Beat("first"), up=True, run="first")
                asked = one.ask("/v1/completions", {"prompt": "?", "stream": True})
                (answer,) = await one.answers(1)
                answer.put_nowait(head(kind=b"text/event-stream"))
                answer.put_nowait(part(b"data: 1\n\n", more_body=True))
                await until(answer.empty)
                await one.hear(ReplicaLost("dead"), Beat("second"), up=True, run="second")
                answer.put_nowait(ReplicaLost("dead"))
                assert b"replica_lost" in (await asked)[-1]["body"]
                assert one.place.up
                assert set(one.records.runs) == {"first"}

        asyncio.run(test())

    def test_one_that_cannot_be_reached_keeps_what_it_has(self):
        async def test() -> None:
            async with desk() as one:
                await one.hear(Beat("first"), up=True, run="first")
                asked = [one.ask("/v1/models") for _ in range(2)]
                first, second = await one.answers(2)
                first.put_nowait(ReplicaUnreachable("a moment"))
                await until(lambda: not one.place.up)
                for message in (head(), part(b"{}")):
                    second.put_nowait(message)
                assert (await asked[1])[0]["status"] == 200
                await one.hear(Beat("first"), up=True, run="first")
                *_, third = await one.answers(3)
                for message in (head(), part(b"{}")):
                    third.put_nowait(message)
                assert (await asked[0])[0]["status"] == 200
                assert one.records.runs == []

        asyncio.run(test())

    def test_a_process_that_was_not_heard_yet_is_not_a_dead_one(self):
        async def test() -> None:
            async with desk(running="first") as one:
                asked = one.ask("/v1/responses/resp_1")
                await asyncio.sleep(0.05)
                await one.hear(Beat("first"), up=True, run="first")
                (answer,) = await one.answers(1)
                for message in (head(), part(b"{}")):
                    answer.put_nowait(message)
                assert (await asked)[0]["status"] == 200
                assert one.records.runs == []

        asyncio.run(test())

    @pytest.mark.parametrize(("status", "knows"), [(200, True), (429, False)])
    def test_a_prompt_that_was_refused_has_not_been_read(self, status, knows):
        async def test() -> None:
            body = {"prompt": LONG}
            async with desk() as one:
                asked = one.ask("/v1/completions", body)
                (answer,) = await one.answers(1)
                assert one.place.match(chain(body)) == len(chain(body))
                for message in (head(status), part(b"{}")):
                    answer.put_nowait(message)
                assert (await asked)[0]["status"] == status
                assert one.place.match(chain(body)) == knows * len(chain(body))

        asyncio.run(test())


def test_a_response_that_could_not_be_kept_runs_no_more(monkeypatch):
    store = ResponseStore()
    records, kept = SharedRecords(store), Kept({"id": "resp_1", "status": "queued"}, [])
    records.put(kept, True, "first")

    def full(*_given: Any, **_options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "put", full)
    with pytest.raises(OSError, match="no space"):
        records.put(kept, False, "first")
    assert records.running_in("resp_1") is None


class TestTheGate:
    def test_keys_are_asked_for_and_stay_here(self, fleet):
        one = fleet(keys=("secret",))
        seen: list[Asked] = []
        for replica in one.replicas:
            send = replica.send
            replica.send = lambda asked, send=send: (seen.append(asked), send(asked))[1]
        one.chat()
        assert "secret" not in str(seen)
        one.key = "wrong"
        with pytest.raises(openai.AuthenticationError):
            one.chat()
        assert one.get("/metrics").status == 401
        assert one.get("/health").status == 200

    def test_a_key_has_its_share_of_all_replicas(self, fleet):
        one = fleet(ENDLESS, ENDLESS, endless=True, keys=("one", "two"), max_per_key=1)
        made = one.client.responses.create(model="tiny", input="?", background=True)
        with pytest.raises(openai.RateLimitError, match="this key has 1 requests running"):
            one.chat()
        one.key = "two"
        with pytest.raises(openai.BadRequestError):
            one.chat(temperature=-1)
        one.key = "one"
        one.client.responses.cancel(made.id)
        assert eventually(lambda: not one.front.tasks)
        stream = one.chat(stream=True)
        assert next(iter(stream))

    def test_a_body_that_is_too_large_is_refused(self, fleet):
        one = fleet()
        with pytest.raises(openai.APIStatusError) as error:
            one.chat("x" * 2**21)
        assert error.value.status_code == 413

    def test_what_a_replica_refuses_is_refused(self, fleet):
        one = fleet()
        assert one.get("/v1/nothing").status == 404
        assert one.post(CHAT, ["no", "object"]).status == 400
        assert one.get("/").status == 200
        response = one.get("/v1/models")
        assert json.loads(response.read())["data"][0]["id"] == "tiny"
        assert len(response.headers.get_all("x-request-id")) == 1

    def test_figures_are_those_of_every_replica(self, fleet):
        one = fleet()
        for content in (LONG, OTHER):
            one.chat(content)
        for n in (0, 1):
            assert one.figure(f'ossia_requests_total{{outcome="stop",replica="{n}"}} 1.0')
            assert one.figure(f'ossia_replica_up{{replica="{n}"}} 1.0')
        page = one.get("/metrics").read().decode()
        assert page.count("# TYPE ossia_unfinished gauge") == 1
        assert 'ossia_front_response_seconds_count{status="200"}' in page


class TestPrefixes:
    def body(self, *said: str) -> dict[str, Any]:
        return {"messages": turn(*said)}

    def test_texts_that_begin_alike_have_chains_that_do(self):
        short, long = chain(self.body(LONG)), chain(self.body(LONG, "42", OTHER))
        whole = len(LONG) // BLOCK
        assert whole <= len(short) <= whole + 1
        assert long[: len(short)] == short
        assert long[-1] not in chain(self.body(OTHER, "42", OTHER))
        assert chain(self.body(LONG) | {"reasoning_effort": "low"})[0] != short[0]
        assert chain(self.body(LONG) | {"temperature": 1}) == short

    def test_a_conversation_by_its_id_goes_on(self):
        first = chain({"input": LONG})
        more = chain({"input": OTHER}, first)
        assert more[: len(first)] == first
        assert more[len(first) :] != chain({"input": OTHER})
        assert len(more) > len(first)

    def test_what_was_used_least_recently_is_forgotten_from_its_end(self):
        known, old, new = Known(most=20), chain({"prompt": LONG}), chain({"prompt": OTHER})
        assert len(old) == len(new) == 8
        for one in (old, new, old, chain({"prompt": "x" * 5 * BLOCK})):
            known.add(one)
        assert (known.match(old), known.match(new)) == (8, 7)
        known.clear()
        assert known.match(old) == 0

    def test_huge_and_odd_texts_cost_little(self):
        deep: Any = []
        for _ in range(100_000):
            deep = [deep]
        assert len(chain({"prompt": "x" * 10**7})) == MOST_BLOCKS
        assert len(chain({"messages": deep})) < 2
        assert chain({}) == chain({"prompt": 1.5}) == []

    def test_ids_are_told_apart(self):
        assert chain({"prompt": [1, 11] * 99}) != chain({"prompt": [11, 1] * 99})
        ids = [*range(999)]
        assert chain({"prompt": [*ids, 7]})[: len(chain({"prompt": ids}))] == chain({"prompt": ids})

    def test_an_answer_that_nobody_can_read_is_passed_on(self):
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def pass_on() -> Answer:
            answer = Answer("/v1/responses", send)
            await answer.take({"type": "http.response.start", "status": 200, "headers": []})
            await answer.take({"type": "http.response.body", "body": b'{"a":' * 2000})
            return answer

        answer = asyncio.run(pass_on())
        assert (answer.made, answer.done, len(sent)) == (None, True, 2)
