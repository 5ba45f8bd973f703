"""Streams in hostile hands: read, closed, interrupted and dropped by many threads at once, over a
real engine whose pages are few. No token is wrong, nobody waits for ever, and no page is lost.

OSSIA_HOSTILE_SECONDS says how long the storm lasts; two minutes are a proof, three seconds a test.
"""

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterable

import pytest
import torch

from ossia.api import AsyncStream, Finished, Stream
from ossia.api.answer import Ask
from ossia.api.stream import read_all
from ossia.engine import Driver, Engine, QueueFull, Request, SamplingParams
from ossia.errors import OssiaError
from ossia.text import Channel, TextDelta
from tests.engine.engines import engine as build
from tests.engine.fake_decoder import VOCAB, FakeDecoder, continuation
from tests.engine.invariants import assert_all_free, check

SECONDS = float(os.environ.get("OSSIA_HOSTILE_SECONDS", "3"))


class Ids:
    """A parser by which every id is a word."""

    channel, malformed = Channel.FINAL, False

    def push(self, id: int) -> list:
        return [TextDelta(Channel.FINAL, f"{id} ")]

    def finish(self) -> list:
        return []


def ask(prompt: list[int], count: int, stop: tuple[str, ...] = ()) -> Ask:
    return Ask(Request(prompt, SamplingParams(temperature=0, max_tokens=count)), Ids, stop)


def ids(events: Iterable) -> list[int]:
    return [int(event.text) for event in events if isinstance(event, TextDelta)]


@pytest.fixture
def engine():
    """With room for about five of the longest texts, so that requests are preempted."""
    engine = build(FakeDecoder((None, 5)), positions=300, page_size=4, max_batch=8)
    step = engine.step

    def checked():
        outputs = step()
        check(engine)
        return outputs

    engine.step = checked
    return engine


def allow(engine: Engine, steps: int) -> threading.Semaphore:
    """Let the engine run so many steps, and one more for each release."""
    permits, step = threading.Semaphore(steps), engine.step

    def permitted():
        assert permits.acquire(timeout=300), "the test forgot to let the engine step"
        return step()

    engine.step = permitted
    return permits


def aborts(engine: Engine) -> list[int]:
    """The requests that will be taken out of the engine."""
    aborted, abort = [], engine.abort

    def noted(request_id: int) -> None:
        aborted.append(request_id)
        abort(request_id)

    engine.abort = noted
    return aborted


@pytest.fixture
def driver(engine):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    driver = Driver(engine)
    yield driver
    assert driver.drain(300)
    assert_all_free(engine)
    driver.close()
    torch.set_num_threads(before)


def run_threads(*work: Callable[[], object]) -> None:
    """All to their ends; raises what one raised."""
    errors: list[BaseException] = []

    def run(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 300)
        assert not thread.is_alive(), "a thread waits for ever"
    if errors:
        raise errors[0]


class TestOneStream:
    @pytest.mark.parametrize("end", [Stream.close, Stream.interrupt])
    def test_a_reader_that_waits_is_woken_from_another_thread(self, driver, engine, end):
        permits = allow(engine, 0)
        stream = Stream(driver, ask([1], 100))
        events = []
        reader = threading.Thread(target=lambda: events.extend(stream))
        reader.start()
        end(stream)
        reader.join(300)
        assert not reader.is_alive()
        assert [type(event) for event in events] == [Finished] * (end is Stream.interrupt)
        permits.release(1000)

    @pytest.mark.parametrize("readers", [2, 5])
    def test_readers_share_the_events(self, driver, readers):
        stream, parts = Stream(driver, ask([2], 150)), [[] for _ in range(readers)]
        run_threads(*(lambda part=part: part.extend(stream) for part in parts))
        assert sum(isinstance(event, Finished) for part in parts for event in part) == 1
        assert sorted(ids(event for part in parts for event in part)) == sorted(
            continuation([2], 150)
        )

    @pytest.mark.parametrize("readers", [1, 3])
    def test_an_error_is_raised_to_each_reader_and_again(self, driver, engine, readers):
        def broken():
            raise ZeroDivisionError("of the step")

        step, engine.step = engine.step, broken
        stream = Stream(driver, ask([2], 10))

        def read():
            for _ in range(3):
                with pytest.raises(ZeroDivisionError, match="of the step"):
                    next(stream)

        run_threads(*[read] * readers)
        engine.step = step
        assert ids(Stream(driver, ask([2], 10))) == continuation([2], 10)

    def test_events_made_before_it_was_closed_can_still_be_read(self, driver):
        class Pairs(Ids):
            def push(self, id):
                return super().push(id) * 2

        one = ask([2], 50)
        stream = Stream(driver, Ask(one.request, Pairs))
        first = next(stream)
        stream.close()
        assert list(stream) == [first]
        assert list(stream) == []

    def test_a_parser_that_raises_ends_its_request(self, driver):
        class Broken(Ids):
            def push(self, id):
                raise KeyError(id)

        stream = Stream(driver, Ask(ask([2], 100).request, Broken))
        for _ in range(2):
            with pytest.raises(KeyError):
                next(stream)

    def test_a_stream_that_is_part_of_a_cycle_is_collected(self, driver, engine):
        permits, aborted = allow(engine, 3), aborts(engine)
        stream = Stream(driver, ask([2], 100))
        stream.itself = stream  # type: ignore[attr-defined]
        next(stream)
        del stream
        gc.collect()
        permits.release(1000)
        assert driver.drain(300)
        assert len(aborted) == 1

    def test_one_that_was_refused_can_be_dropped(self, driver):
        with pytest.raises(OssiaError, match="empty"):
            Stream(driver, ask([], 3))
        gc.collect()


class TestBatch:
    def test_more_than_the_queue_holds_follow_one_another(self, engine):
        driver = Driver(engine, max_queue=7)
        asks = [ask([n % VOCAB, n // VOCAB], 1 + n % 9) for n in range(200)]
        for n, (answer, events) in enumerate(read_all(driver, asks)):
            expected = continuation([n % VOCAB, n // VOCAB], 1 + n % 9)
            assert ids(events) == [output.token for output in answer.outputs] == expected
        assert driver.stats().unfinished == 0

    def test_a_queue_that_others_fill_is_said(self, engine):
        permits, driver = allow(engine, 0), Driver(engine, max_queue=1)
        with Stream(driver, ask([1], 100)), pytest.raises(QueueFull, match="max_queue"):
            read_all(driver, [ask([1], 1)])
        permits.release(1000)
        driver.close()

    def test_a_stop_string_ends_each_where_it_stands(self, driver):
        asks = [ask([n], 100, (f"{continuation([n], 9)[-1]} ",)) for n in range(12)]
        for n, (_, events) in enumerate(read_all(driver, asks)):
            expected = continuation([n], 100)
            assert ids(events) == expected[: expected.index(continuation([n], 9)[-1])]
            assert isinstance(events[-1], Finished)
            assert events[-1].reason == "stop"

    def test_one_that_fails_ends_the_others(self, driver, engine):
        add = engine.add

        def refuses(request):
            if request.prompt == [3]:
                raise ValueError("not three")
            return add(request)

        engine.add = refuses
        with pytest.raises(ValueError, match="not three"):
            read_all(driver, [ask([n], 150) for n in range(5)])


class TestAsyncio:
    def test_streams_in_one_loop_and_threads_beside_it(self, driver):
        async def read(n):
            return ids([event async for event in AsyncStream(driver, ask([n], 60))])

        async def all_of_them():
            return await asyncio.gather(*(read(n) for n in range(20)))

        results = []
        run_threads(
            lambda: results.append(asyncio.run(all_of_them())),
            lambda: results.append(asyncio.run(all_of_them())),
            *[lambda: [*Stream(driver, ask([5], 60))]] * 3,
        )
        assert results == [[continuation([n], 60) for n in range(20)]] * 2

    def test_a_cancelled_task_takes_its_request_out_of_the_engine(self, driver, engine):
        permits, aborted = allow(engine, 3), aborts(engine)

        async def main():
            stream = AsyncStream(driver, ask([1], 100))
            await anext(stream)

            async def read():
                async for _ in stream:
                    pass

            task = asyncio.create_task(read())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [event async for event in stream] == []

        asyncio.run(asyncio.wait_for(main(), 300))
        permits.release(1000)
        assert driver.drain(300)
        assert len(aborted) == 1

    def test_leaving_dropping_and_closing_end_it_too(self, driver, engine):
        permits, aborted = allow(engine, 3), aborts(engine)

        async def main():
            async with AsyncStream(driver, ask([1], 100)) as stream:
                await anext(stream)
            permits.release(3)
            await anext(AsyncStream(driver, ask([1], 100)))
            gc.collect()
            stream = AsyncStream(driver, ask([1], 100))
            readers = [asyncio.create_task(read(stream)) for _ in range(3)]
            await asyncio.sleep(0)
            stream.close()
            await asyncio.gather(*readers)
            await stream.aclose()

        async def read(stream):
            async for _ in stream:
                pass

        asyncio.run(asyncio.wait_for(main(), 300))
        permits.release(1000)
        assert driver.drain(300)
        assert len(aborted) >= 2  # the third may have been closed before it came to the engine

    def test_tasks_share_the_events(self, driver):
        async def main():
            stream = AsyncStream(driver, ask([4], 100))

            async def read():
                return [event async for event in stream]

            parts = await asyncio.gather(*(read() for _ in range(3)))
            return [event for part in parts for event in part]

        events = asyncio.run(asyncio.wait_for(main(), 300))
        assert sorted(ids(events)) == sorted(continuation([4], 100))
        assert sum(isinstance(event, Finished) for event in events) == 1

    def test_an_error_is_raised_where_it_is_awaited(self, driver, engine):
        def broken():
            raise ZeroDivisionError("of the step")

        async def main():
            stream = AsyncStream(driver, ask([2], 10))
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    await anext(stream)

        step, engine.step = engine.step, broken
        asyncio.run(asyncio.wait_for(main(), 300))
        engine.step = step

    @pytest.mark.parametrize("leave", ["close", "stop string", "stop reading"])
    def test_the_loop_rests_when_nobody_reads_what_has_come(self, driver, leave, monkeypatch):
        """Else each such stream would cost the loop a timer, for ever."""
        monkeypatch.setattr("ossia.api.stream._REST_SECONDS", 0)

        async def main():
            first = str(continuation([3], 1)[0])
            stream = AsyncStream(driver, ask([3], 100, (first,) if leave == "stop string" else ()))
            mailbox, look, looks = stream._mailbox, stream._mailbox._look_again, []

            def noted():
                looks.append(None)
                look()

            mailbox._look_again = noted
            while len(mailbox.outputs) < 100:  # all that come
                await asyncio.sleep(0.001)
            event = await anext(stream)
            assert isinstance(event, Finished) == (leave == "stop string")
            if leave == "close":
                stream.close()
            assert mailbox.outputs
            looks.clear()
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(looks) < 10

        asyncio.run(asyncio.wait_for(main(), 300))

    def test_a_loop_that_ends_with_an_open_stream_ends_its_request(self, driver, engine):
        permits, aborted, kept = allow(engine, 3), aborts(engine), []

        async def main():
            kept.append(AsyncStream(driver, ask([2], 100)))
            await anext(kept[0])

        asyncio.run(main())
        permits.release(1000)
        assert driver.drain(300)
        assert len(aborted) == 1


def test_a_storm_of_requests_cancellations_and_drops(driver: Driver, engine: Engine):
    end = time.monotonic() + SECONDS
    finished = [0] * 10
    bag: list[Stream] = []  # streams that another thread drops

    def prompt(chance):
        return [chance.randrange(VOCAB) for _ in range(chance.randint(1, 30))]

    def whole(chance):
        text, count = prompt(chance), chance.randint(1, 60)
        assert ids(Stream(driver, ask(text, count))) == continuation(text, count)

    def begun(chance, leave):
        text, count = prompt(chance), chance.randint(2, 100)
        stream = Stream(driver, ask(text, count))
        seen = [event for _, event in zip(range(chance.randrange(count)), stream, strict=False)]
        assert ids(seen) == continuation(text, len(ids(seen)))
        leave(stream)

    def closed_elsewhere(chance):
        text = prompt(chance)
        stream = Stream(driver, ask(text, 100))
        closer = threading.Timer(chance.random() / 100, stream.close)
        closer.start()
        seen = ids(stream)
        assert seen == continuation(text, len(seen))
        closer.join()

    def batch(chance):
        texts = [prompt(chance) for _ in range(chance.choice([3, 200]))]
        read = read_all(driver, [ask(text, 5) for text in texts])
        assert [ids(events) for _, events in read] == [continuation(text, 5) for text in texts]

    def awaited(chance):
        async def main():
            text = prompt(chance)
            task = asyncio.create_task(read(text))
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() / 100)
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert await task == continuation(text, 40)

        async def read(text):
            return ids([event async for event in AsyncStream(driver, ask(text, 40))])

        asyncio.run(main())

    def work(number: int) -> None:
        chance = random.Random(number)
        kinds = [
            whole,
            closed_elsewhere,
            awaited,
            lambda chance: begun(chance, Stream.close),
            lambda chance: begun(chance, Stream.interrupt),
            lambda chance: begun(chance, lambda stream: None),
            lambda chance: begun(chance, bag.append),
            lambda chance: bag.clear(),
        ]
        # On a loaded machine for longer, until what is to happen has happened.
        while time.monotonic() < end or not (finished[number] and engine.stats().preemptions):
            (batch if chance.random() < 0.02 else chance.choice(kinds))(chance)
            finished[number] += 1

    run_threads(*(lambda number=number: work(number) for number in range(len(finished))))
    bag.clear()
    assert all(finished)
    assert engine.stats().preemptions > 0


def test_two_hundred_at_once_each_in_a_thread(driver):
    def read(n):
        text = [n % VOCAB, n // VOCAB]
        assert ids(Stream(driver, ask(text, 20))) == continuation(text, 20)

    run_threads(*(lambda n=n: read(n) for n in range(200)))
