"""Steps run from a record make the tokens that the operations one by one make."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("ossia.ops._native")

from ossia.engine import Request, SamplingParams
from ossia.model import Decoder
from ossia.ops.cpu import CPU, NativeBackend
from ossia.ops.cpu.recorder import CPURecorder
from ossia.ops.rope import frequencies
from tests.engine.engines import engine as build
from tests.engine.engines import step
from tests.models import gpt2_like, gpt_oss_like, qwen3_like

NEW = 24
aten = torch.ops.aten


def decoder(config, ops=CPU, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    model = Decoder(config, ops).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.1 if name.endswith("bias") else 1.0, generator=generator)
    return model.to(dtype)


class Counted(NativeBackend):
    """The native backend, noting when a step is recorded, refused and replayed."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def recorder(self):
        return CountedRecorder(self.events)


class CountedRecorder(CPURecorder):
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def record(self, step):
        recorded = super().record(step)
        self.events.append("refused" if recorded is None else "recorded")
        if recorded is None:
            return None
        replay = recorded.replay
        return replace(recorded, replay=lambda: (self.events.append("again"), replay())[1])


class Plain(NativeBackend):
    """The native backend, every step operation by operation."""

    def recorder(self):
        return None


class Foreign(Counted):
    """One operation is torch's."""

    def gated(self, gate, up, activation):
        return gate.sigmoid() * gate * up


def tokens(model, count=1, kv=None, **sampling):
    generator = torch.Generator().manual_seed(1)
    requests = [
        Request(
            torch.randint(0, 97, (3 + 3 * i,), generator=generator).tolist(),
            SamplingParams(**{"temperature": 0, "max_tokens": NEW - i, **sampling}),
        )
        for i in range(count)
    ]
    engine = build(model, max_batch=count, page_size=4, prefill_chunk=512, kv=kv)
    return [result.tokens for result in engine.generate(requests)]


@pytest.mark.parametrize("config", [gpt2_like, qwen3_like, gpt_oss_like])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 5])
def test_recorded_steps_change_no_token(config, dtype, count):
    events: list[str] = []
    recorded = decoder(config(), Counted(events), dtype)
    plain = decoder(config(), Plain(), dtype)
    found = tokens(recorded, count)
    assert found == tokens(plain, count)
    assert "refused" not in events
    # Sequences end one by one: each number of them has a record, and is run again from it.
    assert events.count("recorded") == count
    assert events.count("again") == NEW - 1 - count


def test_recorded_steps_read_int8_pages_and_weights():
    models = [decoder(gpt_oss_like(), ops) for ops in (CPU, Plain())]
    for model in models:
        model.to_int8()
    first, second = (tokens(model, 3, kv="int8") for model in models)
    assert first == second


@pytest.mark.parametrize("config", [gpt2_like, qwen3_like, gpt_oss_like])
def test_padded_rows_change_no_token(config):
    events: list[str] = []

    class Padded(Counted):
        def recorder(self):
            recorder = super().recorder()
            recorder.buckets = (3, 8)
            return recorder

    expected = tokens(decoder(config(), Plain()), 5)
    assert tokens(decoder(config(), Padded(events)), 5) == expected
    assert events.count("recorded") == 2
    assert events.count("again") == NEW - 1 - 2


def test_records_are_of_few_sequences():
    events: list[str] = []
    model = decoder(qwen3_like(), Counted(events))
    expected = tokens(decoder(qwen3_like(), Plain()), CPURecorder.buckets[-1] + 1)
    assert tokens(model, CPURecorder.buckets[-1] + 1) == expected
    assert events.count("recorded") == CPURecorder.buckets[-1]


def test_a_prompt_of_one_token_is_recorded_though_nothing_has_been_cached():
    events: list[str] = []
    model = decoder(qwen3_like(), Counted(events))
    frequencies.cache_clear()
    build(model).generate([Request([3], SamplingParams(temperature=0, max_tokens=NEW))])
    assert events == ["recorded", *["again"] * (NEW - 1)]


def test_a_step_that_torch_has_a_part_in_is_not_recorded():
    events: list[str] = []
    plain = decoder(qwen3_like(), Foreign([]))
    plain.ops.recorder = lambda: None
    assert tokens(decoder(qwen3_like(), Foreign(events)), 2) == tokens(plain, 2)
    assert events == ["refused"]


@pytest.mark.parametrize("config", [gpt2_like, qwen3_like, gpt_oss_like])
def test_a_recorded_step_computes_nothing_in_torch(config):
    """The recorder watches functions; this watches every operation that reaches a kernel."""
    foreign: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            allocates = func.overloadpacket in (aten.empty, aten.empty_like, aten.empty_strided)
            if not allocates and not func.is_view:
                foreign.append(str(func))
            return func(*args, **(kwargs or {}))

    class WatchedRecorder(CPURecorder):
        def record(self, step):
            with Watch():
                return super().record(step)

    class Watched(NativeBackend):
        def recorder(self):
            return WatchedRecorder()

    tokens(decoder(config(), Watched()), 2)
    assert foreign == []


def test_weights_changed_in_place_are_seen():
    model = decoder(qwen3_like())
    engine = build(model)
    ids = engine.add(Request([1, 2, 3], SamplingParams(temperature=0, max_tokens=NEW)))
    for _ in range(4):
        engine.step()
    # An unembedding of one row and its opposite: the larger of the two logits is the token's.
    weight = model.get_parameter("unembedding.weight")
    weight.zero_()
    weight[11] = 100
    weight[12] = -100
    (found,) = step(engine)
    assert found.request_id == ids
    assert found.token in (11, 12)


def test_a_recording_is_of_one_thread_and_one_at_a_time():
    from ossia.ops._native import Recording

    outer = Recording()
    outer.begin()
    with pytest.raises(ValueError, match="under way"):
        Recording().begin()
    outer.end()
    assert outer.size == 0
    outer.run()
    for wrong in (outer.begin, Recording().run):
        with pytest.raises(ValueError, match="recording"):
            wrong()
