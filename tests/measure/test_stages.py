"""Where the time of a pass goes: every layer's operations are counted, and nothing twice."""

import pytest
import torch

from ossia.engine import Engine
from ossia.measure.random_weights import random_decoder
from ossia.measure.speed import EngineModel, Workload
from ossia.measure.stages import REST, passes
from ossia.ops import _native
from ossia.ops.cpu import CPU, Machine, using
from ossia.options import EngineOptions
from tests.measure.test_measure import small


@pytest.mark.parametrize("name", ["qwen3-0.6b", "gpt-oss-20b"])
def test_stages_are_those_of_the_layers_and_add_up(name):
    config = small(name)
    layers = len(config.layers)
    with using(Machine(2, "")):
        engine = Engine(random_decoder(config, CPU), EngineOptions(max_batch=2))
        model = EngineModel(engine, max_tokens=8)
        found = passes(model, Workload([20], 3, [1, 2], turns=2))
    assert [one.name for one in found] == [
        "prompt of 20",
        "step of one sequence",
        "step of 2 sequences",
    ]
    for one in found:
        stages = {stage.name: stage for stage in one.stages}
        assert len(stages) == len(one.stages)
        assert stages["attention"].calls == layers
        assert stages["linear layers"].calls >= layers * 2 + 1
        assert ("experts" in stages) == (name == "gpt-oss-20b")
        if "experts" in stages:
            assert stages["experts"].calls == stages["routing"].calls == layers
        assert REST in stages
        assert sum(stage.seconds for stage in one.stages) == pytest.approx(one.seconds)
        for stage in one.stages:
            assert 0 <= stage.busy <= 2.01 * stage.seconds
        assert one.stages == sorted(one.stages, key=lambda stage: -stage.seconds)
    prompt = {stage.name for stage in found[0].stages}
    assert "layout of activations" in prompt


def test_nothing_is_measured_before_and_after():
    machine = Machine(1, "")
    x, weight, y = torch.ones(4, 8), torch.ones(8), torch.empty(4, 8)
    machine.rms_norm(x, weight, y, 1e-5, False)
    assert _native.stages(machine) == []
    _native.time_stages(machine)
    machine.rms_norm(x, weight, y, 1e-5, False)
    machine.rms_norm(x, weight, y, 1e-5, False)
    ((name, calls, seconds, busy),) = _native.stages(machine)
    assert (name, calls) == ("norms", 2)
    assert 0 < seconds == pytest.approx(busy)
    machine.rms_norm(x, weight, y, 1e-5, False)
    assert _native.stages(machine) == []
