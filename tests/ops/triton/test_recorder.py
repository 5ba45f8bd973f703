"""Steps captured as graphs, with a graph of the CPU in the place of CUDA's."""

from __future__ import annotations

import logging

import pytest
import torch

from ossia.engine import Request, SamplingParams
from ossia.model import Decoder
from ossia.ops import Recorded
from ossia.ops.triton.recorder import BUCKETS, CUDAGraphs, GraphRecorder
from tests.engine.engines import engine as build
from tests.models import gpt_oss_like

cpu = pytest.importorskip("ossia.ops.cpu", reason="no native kernels, which read their tables anew")


class FakeGraphs:
    """As CUDA: a capture computes nothing, and a replay computes into the result's memory what the
    step's inputs hold by then.
    """

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replays = 0

    def capture(self, step):
        result = torch.full_like(step(), torch.nan)
        self.captured.append(len(result))

        def replay():
            self.replays += 1
            result.copy_(step())

        return Recorded(result, replay)


class Recording(cpu.NativeBackend):
    """The native kernels, recorded as a card's are."""

    def __init__(self, graphs) -> None:
        self.graphs = graphs

    def recorder(self):
        return GraphRecorder(self.graphs)


class Plain(cpu.NativeBackend):
    def recorder(self):
        return None


PLAIN = Plain()


def generate(ops, lengths, ahead=False, **options):
    decoder = Decoder(gpt_oss_like(), ops).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    prompts = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in lengths]
    sampling = SamplingParams(temperature=0, max_tokens=9)
    engine = build(decoder, **options)
    engine.ahead = ahead
    results = engine.generate(Request(prompt, sampling) for prompt in prompts)
    return [result.tokens for result in results]


@pytest.mark.parametrize("lengths", [(5,), (3, 1, 40), (3, 17, 4, 9, 30, 2, 8)])
@pytest.mark.parametrize("ahead", [False, True])
def test_padded_batches_change_no_token(lengths, ahead):
    """Rows without a text write to page 0; texts begin and end at different steps, which may be
    launched before the ones before them are read.
    """
    graphs = FakeGraphs()
    found = generate(Recording(graphs), lengths, ahead, prefill_chunk=20, page_size=4)
    assert found == generate(PLAIN, lengths, prefill_chunk=20, page_size=4)
    assert graphs.replays > 5
    assert set(graphs.captured) <= set(BUCKETS)
    assert len(set(graphs.captured)) == len(graphs.captured)  # each once
    assert max(graphs.captured) >= len(lengths)


def test_batches_beyond_the_largest_bucket_run_as_they_are(monkeypatch):
    monkeypatch.setattr(GraphRecorder, "buckets", (1, 2))
    graphs, lengths = FakeGraphs(), (3, 17, 4)
    assert generate(Recording(graphs), lengths) == generate(PLAIN, lengths)
    assert set(graphs.captured) <= {1, 2}


def test_a_step_that_cannot_be_captured_runs_without_and_says_so(caplog):
    class Refusing:
        def capture(self, step):
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    with caplog.at_level(logging.WARNING):
        assert generate(Recording(Refusing()), (3, 5)) == generate(PLAIN, (3, 5))
    (message,) = {record.message for record in caplog.records}
    assert message == (
        "decoding without a CUDA graph, more slowly: operation not permitted when stream is "
        "capturing"
    )


@pytest.mark.gpu
def test_a_replayed_graph_computes_with_new_inputs():
    x = torch.zeros(3, device="cuda")
    recorded = GraphRecorder(CUDAGraphs()).record(lambda: x * 2 + 1)
    assert recorded is not None
    x.fill_(4)
    recorded.replay()
    assert recorded.result.tolist() == [9.0, 9.0, 9.0]
