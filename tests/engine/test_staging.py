"""What a step needs of the host goes to the device without waiting for it: only from pinned memory.

The device is torch's "meta", whose copies are seen but not made, taken for one like CUDA.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ossia.engine import SamplingParams, staging
from ossia.engine.kv import CacheLimits, KVCache, PagedText
from ossia.engine.runner import DecodeStep, Span
from ossia.engine.sampler import Batch
from ossia.engine.sampler_state import SamplerState
from ossia.ops.paged import LayerKind

DEVICE = torch.device("meta")
COPY, TO = torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default
NUMBER = torch.ops.aten.scalar_tensor.default  # assigned by index: on CUDA a copy from the host


class Link(TorchDispatchMode):
    """Counts the copies from the host, and refuses those that would wait for the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        self._pinned: list[torch.Tensor] = []
        make = torch.tensor

        def pin(tensor: torch.Tensor) -> torch.Tensor:
            self._pinned.append(tensor.clone())
            return self._pinned[-1]

        def on_the_host(*args, device=None, **options) -> torch.Tensor:
            assert device is None or torch.device(device).type == "cpu", "made on the device"
            return make(*args, **options)

        monkeypatch.setattr(staging, "_PINNED", {"meta"})
        monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
        monkeypatch.setattr(torch, "tensor", on_the_host)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function is not NUMBER, "a number is copied from the host"
        if function is TO and args[0].is_cpu:
            assert kwargs.get("device", args[0].device) != DEVICE, "copied from pageable memory"
        if function is COPY and args[0].is_meta and args[1].is_cpu:
            self.count += 1
            assert args[1].data_ptr() in {tensor.data_ptr() for tensor in self._pinned}
            assert args[2:] == (True,), "the host waits for the copy"
        return function(*args, **kwargs)


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    return Link(monkeypatch)


def test_pages_that_texts_get_and_rows_that_they_leave(link: Link) -> None:
    kinds = [LayerKind(None, 2, 8), LayerKind(4, 2, 8)]
    kv = KVCache(dict.fromkeys(kinds, 40), CacheLimits(4, 8, 3, 64), prefix_cache=False)
    texts = [PagedText([1] * 9, 9) for _ in range(3)]
    for text in texts:
        kv.open(text, 0)
    decoder, pool = SimpleNamespace(device=DEVICE), SimpleNamespace(kinds=kinds)
    step = DecodeStep(decoder, pool, kv, rows=4, apart=True)  # type: ignore[arg-type]

    def fill(start: int, count: int) -> int:
        """The copies of a step of the first texts, one position each."""
        before = link.count
        spans = [Span(text, start, (0,)) for text in texts[:count]]
        for text in texts[:count]:
            assert kv.grow(text, start + 1)
        tokens = torch.zeros(count, dtype=torch.int64, device=DEVICE)
        with link:
            step.fill(spans, tokens)
        return link.count - before

    each = len(kinds)  # beside the rows, and the step's positions
    assert fill(10, 3) == 2 + each
    assert fill(11, 3) == 1
    assert fill(12, 3) == 2 + each  # a page for each text
    assert fill(13, 2) == 1


def test_a_batch_of_those_that_go_on(link: Link) -> None:
    states = [
        SamplerState(i, SamplingParams(temperature=t, top_k=k, seed=i), [1, 2])
        for i, (t, k) in enumerate(((0.0, 0), (1.0, 5), (0.7, 0)))
    ]
    logits = torch.zeros(2, 97, device=DEVICE)
    with link:
        batch = Batch(states, 97, DEVICE)
        batch.prepare(states, ahead=1)
        assert not batch.serves(logits, states[1:])
        made = link.count
        Batch(states[1:], 97, DEVICE).prepare(states[1:], ahead=1)
    assert link.count == 2 * made > 0


def test_what_is_sent_arrives_and_is_not_shared() -> None:
    cpu = torch.device("cpu")
    source = torch.arange(6).view(2, 3).T
    copy = staging.sent(source, torch.int64, cpu)
    source += 1
    assert copy.tolist() == [[0, 3], [1, 4], [2, 5]]
    column = staging.sent([0.5, 2], torch.float32, cpu)
    assert column.dtype == torch.float32
    assert column.tolist() == [0.5, 2.0]
