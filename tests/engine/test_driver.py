"""One thread owns the engine: what is submitted is delivered in order, what goes wrong stays with
whom it concerns, and threads, forks and the interpreter's end are survived.
"""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from queue import SimpleQueue

import pytest
import torch

from ossia.engine import Driver, Failure, QueueFull, Request, SamplingParams, TokenOutput
from ossia.engine.request import Output
from ossia.errors import OssiaError
from tests.engine.engines import engine as build
from tests.engine.fake_decoder import FakeDecoder, continuation
from tests.engine.invariants import assert_all_free
from tests.scripted import ScriptedEngine, eventually, small_config

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at threads in /proc")


def scripted(count: int = 8, length: int = 3) -> ScriptedEngine:
    """Answers the n-th request with the token n, `length` times."""
    return ScriptedEngine([[n] * length for n in range(count)], small_config())


def request(*prompt: int, max_tokens: int | None = None) -> Request:
    return Request(prompt or (1,), SamplingParams(temperature=0, max_tokens=max_tokens))


class Receiver:
    """Keeps what it is delivered."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[Output] = SimpleQueue()
        self.threads: set[str] = set()

    def __call__(self, output: Output) -> None:
        self.threads.add(threading.current_thread().name)
        self.queue.put(output)

    def tokens(self) -> list[int]:
        """All to the end; raises a failure's error."""
        tokens = []
        while True:
            output = self.queue.get(timeout=300)
            if isinstance(output, Failure):
                raise output.error
            assert isinstance(output, TokenOutput)
            tokens.append(output.token)
            if output.finish_reason:
                return tokens


def outcomes(driver: Driver, count: int) -> list[Receiver]:
    receivers = [Receiver() for _ in range(count)]
    assert len(driver.submit_some([(request(), receiver) for receiver in receivers])) == count
    return receivers


class TestSubmit:
    def test_outputs_are_delivered_in_order_on_the_engines_thread(self):
        engine = build(FakeDecoder())
        driver = Driver(engine)
        receivers = [Receiver() for _ in range(5)]
        for n, receiver in enumerate(receivers):
            driver.submit(request(n, 7, max_tokens=20), receiver)
        for n, receiver in enumerate(receivers):
            assert receiver.tokens() == continuation([n, 7], 20)
            assert receiver.threads == {"ossia-engine"}
        assert driver.drain(300)
        assert_all_free(engine)

    def test_those_submitted_together_run_in_one_batch(self):
        engine = scripted()
        driver = Driver(engine)
        for receiver in outcomes(driver, 6):
            receiver.tokens()
        assert engine.most_at_once == 6

    def test_a_request_that_cannot_be_served_is_refused_with_all_those_beside_it(self):
        driver = Driver(scripted())
        with pytest.raises(OssiaError, match="id 999999"):
            driver.submit_some([(request(1), print), (request(999999), print)])
        assert driver.stats().unfinished == 0

    def test_a_full_queue_refuses_until_one_has_ended(self):
        engine = scripted()
        engine.may_step.clear()
        driver = Driver(engine, max_queue=3)
        receivers = [Receiver() for _ in range(4)]
        tickets = driver.submit_some([(request(), receiver) for receiver in receivers])
        assert len(tickets) == 3
        with pytest.raises(QueueFull, match="3 requests are unfinished"):
            driver.submit(request(), receivers[3])
        assert driver.stats().unfinished == 3
        engine.may_step.set()
        assert receivers[0].tokens() == [0, 0, 0]
        driver.submit(request(), receivers[3])
        assert receivers[3].tokens() == [3, 3, 3]

    def test_the_submitters_number_of_torch_threads_holds_for_the_steps(self):
        seen = set()

        class Counting(ScriptedEngine):
            def step(self):
                seen.add(torch.get_num_threads())
                return super().step()

        driver = Driver(Counting([[1, 1]] * 2, small_config()))
        before = torch.get_num_threads()
        try:
            for threads in (3, 1):
                torch.set_num_threads(threads)
                outcomes(driver, 1)[0].tokens()
                assert seen == {threads}
                seen.clear()
        finally:
            torch.set_num_threads(before)


class TestErrors:
    def test_a_step_that_raises_fails_those_in_it_and_the_driver_goes_on(self):
        class Raises(ScriptedEngine):
            def step(self):
                if len(self.running) == 2:
                    raise ZeroDivisionError("in the step")
                return super().step()

        engine = Raises([[n] * 3 for n in range(3)], small_config())
        driver = Driver(engine)
        for receiver in outcomes(driver, 2):
            with pytest.raises(ZeroDivisionError, match="in the step"):
                receiver.tokens()
        assert engine.aborted == [0, 1]
        assert outcomes(driver, 1)[0].tokens() == [2, 2, 2]

    def test_a_failure_ends_only_its_request(self):
        engine = scripted()
        engine.may_step.clear()
        driver = Driver(engine)
        broken, fine = outcomes(driver, 2)
        engine.broken.add(0)
        engine.may_step.set()
        assert fine.tokens() == [1, 1, 1]
        with pytest.raises(OssiaError, match="request 0"):
            broken.tokens()

    def test_a_request_that_the_engine_does_not_take_fails_alone(self):
        class Refuses(ScriptedEngine):
            def add(self, request):
                if request.prompt == (2,):
                    raise ValueError("not this one")
                return super().add(request)

        driver = Driver(Refuses([[5]], small_config()))
        refused, taken = Receiver(), Receiver()
        driver.submit_some([(request(2), refused), (request(1), taken)])
        with pytest.raises(ValueError, match="not this one"):
            refused.tokens()
        assert taken.tokens() == [5]
        assert driver.drain(300)

    def test_a_receiver_that_raises_loses_only_its_own_request(self, caplog):
        engine = scripted(length=50)
        engine.may_step.clear()
        driver, calls = Driver(engine), []

        def raises(output):
            calls.append(output)
            raise SystemExit("of the receiver's own")

        driver.submit(request(), raises)
        fine = outcomes(driver, 1)[0]
        engine.may_step.set()
        assert fine.tokens() == [1] * 50
        assert driver.drain(300)
        assert (len(calls), engine.aborted) == (1, [0])
        assert "request 0 is cancelled: its receiver raised SystemExit" in caplog.text


class TestCancel:
    def test_a_cancelled_request_gets_nothing_more_and_leaves_the_engine(self):
        engine = scripted()
        engine.endless = True
        driver, receiver = Driver(engine), Receiver()
        ticket = driver.submit(request(), receiver)
        receiver.queue.get(timeout=300)
        driver.cancel(ticket)
        assert driver.drain(300)
        assert engine.aborted == [0]
        while not receiver.queue.empty():
            output = receiver.queue.get()
            assert isinstance(output, TokenOutput)
            assert output.finish_reason is None

    def test_one_that_waits_never_starts(self):
        begun = threading.Event()

        class Waits(ScriptedEngine):
            def step(self):
                begun.set()
                return super().step()

        engine = Waits([[n] * 3 for n in range(2)], small_config())
        engine.may_step.clear()
        driver = Driver(engine)
        (first,) = outcomes(driver, 1)
        assert begun.wait(300)
        ticket = driver.submit(request(), print)
        driver.cancel(ticket)
        driver.cancel(ticket)
        engine.may_step.set()
        assert first.tokens() == [0, 0, 0]
        assert driver.drain(300)
        assert (len(engine.requests), engine.aborted) == (1, [])

    def test_one_that_has_ended_is_none_of_its_business(self):
        engine = scripted()
        driver, receiver = Driver(engine), Receiver()
        ticket = driver.submit(request(), receiver)
        receiver.tokens()
        driver.cancel(ticket)
        assert outcomes(driver, 1)[0].tokens() == [1, 1, 1]
        assert engine.aborted == []

    def test_a_receiver_may_cancel_and_submit(self):
        engine = scripted()
        engine.endless = True
        driver, second = Driver(engine), Receiver()

        def receive(output):
            driver.cancel(ticket)
            driver.cancel(driver.submit(request(), second))

        engine.may_step.clear()
        ticket = driver.submit(request(), receive)
        engine.may_step.set()
        assert eventually(lambda: driver.stats().unfinished == 0)
        assert second.queue.empty()
        assert not engine.running


class TestEnd:
    def test_draining_finishes_what_runs_and_takes_nothing_new(self):
        engine = scripted()
        engine.may_step.clear()
        driver = Driver(engine)
        receivers = outcomes(driver, 3)
        assert not driver.drain(0.01)
        with pytest.raises(OssiaError, match="closed"):
            driver.submit(request(), print)
        engine.may_step.set()
        assert driver.drain(300)
        assert [receiver.tokens() for receiver in receivers] == [[n] * 3 for n in range(3)]

    def test_closing_fails_what_runs_and_lets_go_of_the_engine(self):
        engine = scripted()
        engine.endless = True
        driver = Driver(engine)
        receivers = outcomes(driver, 3)
        driver.close()
        for receiver in receivers:
            with pytest.raises(OssiaError, match="closed"):
                receiver.tokens()
        with pytest.raises(OssiaError, match="closed"):
            driver.submit(request(), print)
        gone = weakref.ref(engine)
        del engine
        gc.collect()
        assert gone() is None
        assert driver.stats().engine is None
        driver.close()
        assert driver.drain(0)

    def test_closing_breaks_off_a_step_that_takes_for_ever(self):
        class Slow(ScriptedEngine):
            def step(self):
                started.set()
                while True:
                    time.sleep(0.001)

        started = threading.Event()
        driver = Driver(Slow([[1]], small_config()))
        (receiver,) = outcomes(driver, 1)
        started.wait(300)
        driver.close()
        with pytest.raises(OssiaError, match="closed"):
            receiver.tokens()

    def test_a_driver_that_never_ran_can_be_closed(self):
        driver = Driver(scripted())
        driver.close()
        with pytest.raises(OssiaError, match="closed"):
            driver.submit(request(), print)

    def test_a_receiver_may_close_and_must_not_drain(self):
        driver, raised = Driver(scripted()), SimpleQueue()

        def receive(output):
            if isinstance(output, Failure):
                raised.put(output.error)
                return
            try:
                driver.drain()
            except RuntimeError as error:
                raised.put(error)
            driver.close()

        driver.submit(request(), receive)
        assert "cannot wait for its requests" in str(raised.get(timeout=300))
        assert "closed" in str(raised.get(timeout=300))

    def test_a_dropped_driver_ends_its_thread(self):
        driver = Driver(scripted())
        thread = thread_of(driver)
        assert thread.is_alive()
        del driver
        gc.collect()
        thread.join(300)
        assert not thread.is_alive()

    @linux
    def test_an_idle_thread_sleeps(self):
        driver = Driver(scripted())
        thread = thread_of(driver)

        def switches():
            with open(f"/proc/self/task/{thread.native_id}/status") as file:
                return [line for line in file if "ctxt_switches" in line]

        def still():
            before = switches()
            time.sleep(0.1)
            return before == switches()

        assert eventually(still)
        driver.close()


def thread_of(driver: Driver) -> threading.Thread:
    """The thread on which a request's outputs are delivered."""
    threads = SimpleQueue()
    driver.submit(request(), lambda _: threads.put(threading.current_thread()))
    return threads.get(timeout=300)


PROGRAM = """
import os, sys, threading, time
import torch
from ossia.engine import Driver, Request, SamplingParams
from ossia.errors import OssiaError
from tests.engine.engines import engine as build
from tests.engine.fake_decoder import FakeDecoder, continuation
from tests.engine.invariants import assert_all_free
from tests.engine.test_driver import Receiver, outcomes, request

engine = build(FakeDecoder((None, 5), 4000))
driver = Driver(engine)

def right(n, count=40):
    receiver = Receiver()
    driver.submit(request(n, max_tokens=count), receiver)
    return receiver.tokens() == continuation([n], count)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    # From 3.12 on, Python warns of every fork of a process that has threads.
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM + code]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
class TestFork:
    @pytest.mark.parametrize("begun", [True, False])
    def test_a_child_goes_on_with_a_copy_and_the_parent_with_its_own(self, begun):
        done = run(f"""
if {begun}:
    assert right(1)
running = Receiver()
driver.submit(request(3, max_tokens=400), running)
children = []
for n in range(3):
    child = os.fork()
    if child == 0:
        child = os.fork()  # a grandchild, which has the parent's requests at third hand
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        ok = right(n) and right(n + 1) and driver.drain(300)
        assert_all_free(engine)
        sys.exit(0 if ok else 1)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
assert running.tokens() == continuation([3], 400)
assert driver.drain(300)
assert_all_free(engine)
""")
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_fork_under_load_from_many_threads(self):
        done = run("""
def work():
    while not over:
        assert right(5)
over = False
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for n in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0 if right(n) else 1)
    assert os.waitpid(child, 0)[1] == 0
over = True
for thread in threads:
    thread.join()
""")
        assert (done.returncode, done.stderr) == (0, "")

    def test_an_engine_that_cannot_run_in_the_child_says_so(self):
        done = run("""
assert right(1)
child = os.fork()
if child == 0:
    def cannot(*_):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")
    engine.runner.run = cannot
    try:
        right(2)
    except OssiaError as error:
        assert "does not run in this forked process (Cannot re-initialize CUDA" in str(error)
        os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""")
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_receiver_may_start_a_process(self):
        done = run("""
import subprocess
ran = []
def receive(output):
    ran.append(subprocess.run(["true"], preexec_fn=lambda: None).returncode)
driver.submit(request(1, max_tokens=3), receive)
assert driver.drain(300) and ran == [0, 0, 0], ran
""")
        assert (done.returncode, done.stderr) == (0, "")


class TestInterpretersEnd:
    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("sys.exit(3)", 3),
            ("engine.step = lambda: [time.sleep(0.001) for _ in iter(int, 1)]", 0),
        ],
    )
    def test_requests_that_run_neither_abort_it_nor_change_its_status(self, code, status):
        done = run(f"""
receivers = outcomes(driver, 30)
receivers[0].queue.get()
{code}
""")
        assert (done.returncode, done.stderr) == (status, "")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_neither_do_those_of_a_driver_that_is_dropped_drained_or_closed_meanwhile(self):
        done = run("""
import atexit
for end in (
    lambda: None,
    lambda: globals().pop("driver"),
    lambda: threading.Thread(target=driver.drain, daemon=True).start(),
    lambda: atexit.register(driver.close),
    lambda: atexit.register(outcomes, driver, 3),
):
    child = os.fork()
    if child == 0:
        receivers = outcomes(driver, 30)
        receivers[0].queue.get()
        end()
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
""")
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_request_after_it_is_refused(self):
        done = run("""
import atexit
def late():
    try:
        right(1)
    except OssiaError as error:
        print(error)
atexit._run_exitfuncs()
late()
""")
        assert (done.returncode, done.stderr) == (0, "")
        assert "the model is closed" in done.stdout


class TestCall:
    def test_work_is_done_on_the_engines_thread_with_and_without_requests(self):
        driver = Driver(engine := scripted(2, 5))
        work = [driver.call(lambda e: (e, threading.current_thread().name)) for _ in range(2)]
        receiver = Receiver()
        driver.submit(request(), receiver)
        work.append(driver.call(lambda e: (e, threading.current_thread().name)))
        assert [w.result(300) for w in work] == [(engine, "ossia-engine")] * 3
        assert receiver.tokens() == [0] * 5

    def test_what_it_raises_is_the_callers(self):
        driver = Driver(scripted())
        with pytest.raises(ZeroDivisionError):
            driver.call(lambda _: 1 / 0).result(300)
        receiver = Receiver()
        driver.submit(request(), receiver)
        assert receiver.tokens() == [0] * 3

    def test_a_closed_driver_does_none(self):
        driver = Driver(engine := scripted())
        engine.may_step.clear()
        driver.submit(request(), Receiver())
        waiting = driver.call(lambda _: "done")
        engine.may_step.set()
        driver.close()
        with pytest.raises(OssiaError, match="the model is closed"):
            driver.call(lambda _: None)
        assert waiting.done()
