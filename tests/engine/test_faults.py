"""A GPU whose memory others have taken, or that stops: one clear line, and an engine that goes on
or ends. The device is simulated: the decoder raises what torch raises.
"""

from __future__ import annotations

from queue import SimpleQueue

import pytest
import torch

from ossia.engine import Driver, Failure, Request, SamplingParams, TokenOutput, faults
from ossia.engine.request import Output
from ossia.errors import DeviceLost, OssiaError
from ossia.system.gpu import ran_out
from tests.engine.engines import engine
from tests.engine.fake_decoder import FakeDecoder, continuation

CUDA = torch.device("cuda", 0)
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0\nhas ..."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"


class Narrow(FakeDecoder):
    """Raises `full` in a pass over more than `room` tokens."""

    room = 1 << 20
    full: Exception = FULL[0]

    def hidden_states(self, tokens, context):
        if len(tokens) > self.room:
            self.steps.append([len(tokens)])
            raise self.full
        return super().hidden_states(tokens, context)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have what an engine asks of its GPU answered: the calls that were made."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: calls.append("synchronize"))
    monkeypatch.setattr(faults, "free_memory", lambda _device: 3 * 10**8)
    return calls


def on_card(decoder: FakeDecoder, **options: object):
    built = engine(decoder, **options)  # type: ignore[arg-type]
    built._device = CUDA
    return built


def request(prompt: list[int], count: int = 5) -> Request:
    return Request(prompt, SamplingParams(temperature=0, max_tokens=count))


def run(built) -> tuple[dict[int, list[int]], dict[int, Exception]]:
    """Tokens and errors by request, until the engine has no work."""
    tokens: dict[int, list[int]] = {}
    failed: dict[int, Exception] = {}
    while built.has_work:
        for output in built.step():
            if isinstance(output, Failure):
                failed[output.request_id] = output.error
            elif isinstance(output, TokenOutput):
                tokens.setdefault(output.request_id, []).append(output.token)
    return tokens, failed


@pytest.mark.parametrize("full", [*FULL, MemoryError()])
def test_prompts_are_read_in_smaller_chunks_while_memory_is_short(card, caplog, full) -> None:
    decoder = Narrow()
    decoder.room, decoder.full = 40, full
    built = on_card(decoder, prefill_chunk=128)
    prompts = [[(7 * i + n) % 97 for i in range(n)] for n in (150, 3, 90)]
    ids = [built.add(request(prompt)) for prompt in prompts]
    tokens, failed = run(built)
    assert not failed
    for id, prompt in zip(ids, prompts, strict=True):
        assert tokens[id] == continuation(prompt, 5)
    assert "empty" in card
    (line,) = [line for line in caplog.messages if "64 tokens" in line]
    assert line.startswith("the memory of cuda:0 ran out: prompts are read 64 tokens at a time")
    # Once there is memory again and nothing to do, as before.
    decoder.room = 1000
    decoder.steps.clear()
    built.add(request(prompts[0]))
    built.add(request([5] * 100))
    assert run(built)[1] == {}
    assert max(map(sum, decoder.steps)) > 64


def test_a_step_that_nothing_makes_smaller_fails_its_requests_and_others_go_on(card) -> None:
    decoder = Narrow()
    built = on_card(decoder)
    first, second = built.add(request([1, 2, 3], 50)), built.add(request([4, 5], 50))
    built.step()
    decoder.room = 0
    outputs = built.step()
    assert [output.request_id for output in outputs] == [first, second]
    for output in outputs:
        assert isinstance(output, Failure)
        assert isinstance(output.error, OssiaError)
        assert str(output.error) == (
            "the memory of cuda:0 ran out while this was computed; 0.3 GB are free now: end "
            "other programs that use it, or lower --kv-memory or --max-batch"
        )
    assert not built.has_work
    decoder.room = 100
    third = built.add(request([6, 7, 8]))
    assert run(built) == ({third: continuation([6, 7, 8], 5)}, {})


def test_requests_that_fit_alone_are_computed_alone(card) -> None:
    """No request fails if a batch is too much: each has its own pass."""
    decoder = Narrow()
    built = on_card(decoder)
    prompts = [[1, 2, 3], [4, 5], [9]]
    ids = [built.add(request(prompt)) for prompt in prompts]
    decoder.room = 3
    tokens, failed = run(built)
    assert not failed
    assert tokens == {id: continuation(prompt, 5) for id, prompt in zip(ids, prompts, strict=True)}


class Lost:
    """A device that fails in its first call and in all calls after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, decoder: FakeDecoder) -> None:
        def synchronize(_device: torch.device) -> None:
            raise RuntimeError(ILLEGAL)

        decoder.error = RuntimeError("CUDA error: unspecified launch failure")
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)


LINE = (
    "cuda:0 computes no more in this process: CUDA error: an illegal memory access was "
    "encountered; start the program again"
)


def test_a_device_that_stops_ends_the_engine_with_one_line(monkeypatch, caplog) -> None:
    decoder = FakeDecoder()
    driver = Driver(on_card(decoder))
    outputs: SimpleQueue[Output] = SimpleQueue()
    Lost(monkeypatch, decoder)
    # Together: after the first step the driver takes no more.
    driver.submit_some([(request(prompt), outputs.put) for prompt in ([1, 2], [3], [4, 5])])
    for _ in range(3):
        output = outputs.get(timeout=300)
        assert isinstance(output, Failure)
        assert isinstance(output.error, DeviceLost)
        assert str(output.error) == LINE
    worker = driver._worker
    assert worker._thread is not None
    worker._thread.join(300)
    assert not worker._thread.is_alive()
    stats = driver.stats()
    assert (stats.engine, str(stats.fault), stats.unfinished) == (None, LINE, 0)
    with pytest.raises(DeviceLost, match="start the program again"):
        driver.submit(request([1]), outputs.put)
    with pytest.raises(DeviceLost):
        driver.call(lambda engine: engine.stats())
    assert LINE in caplog.messages
    driver.close()


def test_an_error_after_which_the_device_computes_is_its_requests_own(card) -> None:
    decoder = FakeDecoder()
    built = on_card(decoder)
    decoder.error = RuntimeError("a kernel has no image for this shape")
    first = built.add(request([1, 2]))
    (failed,) = built.step()
    assert isinstance(failed, Failure)
    assert failed.error is decoder.error
    assert card == ["synchronize"]
    decoder.error = None
    second = built.add(request([1, 2]))
    assert run(built) == ({second: continuation([1, 2], 5)}, {})
    assert first != second


@pytest.mark.parametrize(
    ("error", "device", "found"),
    [
        (FULL[0], "works", OssiaError),
        (RuntimeError(ILLEGAL), "lost", DeviceLost),
        (RuntimeError("a bug"), "works", RuntimeError),
    ],
)
def test_errors_of_a_draft_model(card, monkeypatch, error, device, found) -> None:
    """It drafts before the step."""
    built = on_card(FakeDecoder())
    if device == "lost":
        Lost(monkeypatch, FakeDecoder())

    def extend(*_: object):
        raise error

    monkeypatch.setattr(built.scheduler, "schedule", extend)
    built.add(request([1, 2]))
    with pytest.raises(found) as caught:
        built.step()
    assert type(caught.value) is found
    assert "\n" not in str(caught.value)


def test_a_forked_child_has_lost_no_device(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    error = RuntimeError("Cannot re-initialize CUDA in forked subprocess")
    assert faults.lost(error, CUDA) is None


@pytest.mark.parametrize("error", [RuntimeError("an index"), ValueError("no"), *FULL[:1]])
def test_the_cpu_is_never_lost(error: Exception) -> None:
    assert faults.lost(error, torch.device("cpu")) is None


@pytest.mark.parametrize("error", [RuntimeError(ILLEGAL), ValueError("out of memory"), KeyError(1)])
def test_other_errors_are_not_a_lack_of_memory(error: Exception) -> None:
    assert not ran_out(error)
