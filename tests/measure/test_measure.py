"""What measurements count, on models whose time is known, and random models that are whole."""

import time
from dataclasses import replace

import pytest
import torch

from ossia import checkpoint, load_model
from ossia.engine import Engine, Request, TokenOutput
from ossia.errors import OssiaError
from ossia.families import PRESETS
from ossia.measure import memory
from ossia.measure.model import measure_model, measure_run, weight_files
from ossia.measure.random_weights import random_decoder
from ossia.measure.speed import SAMPLED, SHORT_PROMPT, EngineModel, Spread, Workload, measure
from ossia.options import EngineOptions
from tests.models import moe_of
from tests.scripted import eventually


class Clock:
    """Time that passes only when a model or memory is at work."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class ClockedModel:
    """Reads a token in a hundredth of a second, and makes one in a tenth for any batch."""

    vocab_size = 10

    def __init__(self, clock, sampled=None):
        self.clock, self.sampled, self.prompts, self.steps = clock, sampled, [], 0

    def prefill(self, prompts):
        self.prompts.append([len(prompt) for prompt in prompts])
        assert all(0 <= token < self.vocab_size for prompt in prompts for token in prompt)
        self.clock.now += 0.01 * sum(map(len, prompts))

    def step(self):
        self.steps += 1
        self.clock.now += 0.1


class ClockedSampledModel(ClockedModel):
    """Takes a fifth more for a step: its sampler takes a hundredth of a second for a row."""

    def step(self):
        self.clock.now += 0.12

    def sampler_seconds(self, rows):
        return 0.01 * rows


def test_rates_are_tokens_over_the_time_they_took(monkeypatch):
    clock = Clock(monkeypatch)
    model, turns = ClockedModel(clock), []
    bandwidths = iter([10.0, 20.0] * 3)
    speed = measure(
        model,
        Workload([50, 200], tokens=4, batches=[1, 8], turns=3),
        lambda: next(bandwidths),
        bytes_per_token=0.5,
        progress=lambda: turns.append(clock.now),
    )
    assert [prefill.tokens for prefill in speed.prefill] == [50, 200]
    assert [prefill.seconds.median for prefill in speed.prefill] == pytest.approx([0.5, 2.0])
    assert [p.tokens_per_second.median for p in speed.prefill] == pytest.approx([100, 100])
    assert [d.tokens_per_second.median for d in speed.decoding] == pytest.approx([10, 80])
    assert speed.decoding[0].share is not None
    assert speed.decoding[0].share.most == pytest.approx(10 * 0.5 / 10)  # bytes over bandwidth
    assert speed.decoding[1].share is None
    assert speed.read_bytes_per_second == Spread(15.0, 10.0, 20.0)
    assert len(turns) == 3 * 4
    assert model.prompts[2:4] == [[SHORT_PROMPT], [SHORT_PROMPT] * 8]
    assert [decoding.sampled for decoding in speed.decoding] == [None, None]


def test_sampling_is_measured_beside_greedy_decoding_and_alone(monkeypatch):
    clock = Clock(monkeypatch)
    model = ClockedModel(clock, ClockedSampledModel(clock))
    workload = Workload([5], tokens=4, batches=[1, 8], turns=3)
    speed = measure(model, workload, lambda: 1.0, bytes_per_token=1.0)
    assert [d.tokens_per_second.median for d in speed.decoding] == pytest.approx([10, 80])
    for decoding, batch in zip(speed.decoding, (1, 8), strict=True):
        assert decoding.sampled is not None
        assert decoding.sampled.tokens_per_second.median == pytest.approx(batch / 0.12)
        assert decoding.sampled.sampler_seconds.median == pytest.approx(0.01 * batch)
        assert decoding.sampled.sampler_share.median == pytest.approx(0.01 * batch / 0.12)


def test_a_run_tells_loading_from_the_first_token(monkeypatch):
    monkeypatch.setattr("ossia.measure.machine.BUFFER_BYTES", 1 << 20)
    clock = Clock(monkeypatch)

    def load():
        clock.now += 3.0
        return ClockedModel(clock)

    monkeypatch.setattr("ossia.measure.machine.Bandwidth.__call__", lambda self: 1.0)
    run = measure_run(load, Workload([1], tokens=1, turns=1), bytes_per_token=1)
    assert run.load_seconds == pytest.approx(3.0)
    assert run.first_token_seconds == pytest.approx(3.0 + 0.01 * SHORT_PROMPT)


def test_a_request_that_fails_is_not_timed(monkeypatch):
    engine = Engine(random_decoder(small("gpt2")))

    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.runner, "run", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        EngineModel(engine, max_tokens=4).prefill([[1, 2]])


def test_drafts_are_not_measured():
    options = EngineOptions(speculate="ngram")
    with pytest.raises(OssiaError, match="--speculate ngram: each token is timed in a step"):
        measure_model(PRESETS["gpt2"], Workload((8,), 4, (1,), 1), engine=options)


def test_a_spread_is_of_what_was_measured():
    assert Spread.of([3.0, 1.0, 2.0, 9.0]) == Spread(2.5, 1.0, 9.0)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "qwen3-0.6b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_random_weights_fill_the_model_with_numbers(name, copy):
    config = small(name)
    decoder = random_decoder(config, copy=copy)
    assert decoder.dtype is getattr(torch, config.dtype)
    with torch.inference_mode():
        logits = decoder(torch.arange(20)[None])
    assert logits.isfinite().all()
    assert logits.std() > 0.01  # they depend on what was read
    assert (logits[0, 0] - logits[0, 1]).abs().max() > 0.01
    storages = {tensor.untyped_storage().data_ptr() for tensor in decoder.state_dict().values()}
    matrices = [t for t in decoder.state_dict().values() if t.dim() > 1]
    assert (len(storages) >= len(matrices)) is copy
    assert all(matrix.is_contiguous() for matrix in matrices) is copy


def test_rows_of_random_weights_differ_from_each_other():
    weight = moe_of(random_decoder(small("gpt-oss-20b")), 0).router.weight
    assert len(weight.unique(dim=0)) == len(weight)


def test_random_weights_that_take_no_memory_can_be_saved(tmp_path):
    decoder = random_decoder(small("gpt-oss-20b"), copy=False)
    checkpoint.save(decoder, tmp_path)
    loaded = load_model(tmp_path, backend="reference").state_dict()
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


def test_the_peak_of_memory_is_seen_after_it_was_given_back():
    before = memory.resident("Anon")
    with memory.PeakAnonymous() as peak:
        held = torch.ones(200 << 20, dtype=torch.uint8)
        assert eventually(lambda: peak.bytes - before > 150 << 20)
        del held
    assert memory.resident("Anon") < peak.bytes - (100 << 20)


def small(name):
    config = PRESETS[name]
    layers = tuple(
        replace(layer, feedforward=replace(layer.feedforward, intermediate_size=64))
        for layer in config.layers[:2]
    )
    return replace(config, layers=layers, vocab_size=96, hidden_size=64, context_length=64)


def test_sequences_of_a_batch_are_at_work_together():
    engine = Engine(random_decoder(small("gpt2")), EngineOptions(max_batch=8))
    model = EngineModel(engine, max_tokens=10)
    model.prefill([[1] * SHORT_PROMPT for _ in range(8)])
    assert len(engine.step()) == 8


def test_the_sampled_model_samples_on_the_same_engine():
    engine = Engine(random_decoder(small("gpt2")), EngineOptions(max_batch=8))
    prompt = [1] * SHORT_PROMPT
    (expected,) = engine.generate([Request(prompt, replace(SAMPLED, max_tokens=2))])
    model = EngineModel(engine, max_tokens=10)
    assert model.sampled is not None
    model.sampled.prefill([prompt])
    (output,) = engine.step()
    assert isinstance(output, TokenOutput)
    assert output.token == expected.tokens[1]
    assert model.sampled.sampler_seconds(3) > 0
