"""The ladder's rungs on the training kernels at a tiny size: a step has the figures of the CPU's
backend.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ossia.ladder.run import Ablation, is_packed
from ossia.ops.triton.training import TritonTraining
from tests.ladder.conftest import small_plan
from tests.ops.triton.conftest import ON_CARD


@pytest.mark.skipif(ON_CARD, reason="interprets kernels on the CPU")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_rung_trains_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = Ablation.start(small_plan(tmp_path, steps=12, seeds=1), tmp_path / "out")
    for rung, config in ladder.rungs:
        settings = ladder.plan.settings(packed=is_packed(config), seed=0)
        settings = replace(settings, mxfp4_steps=settings.steps if is_packed(config) else 0)
        reports = []
        for kernels in (False, True):
            with monkeypatch.context() as patch:
                if kernels:
                    patch.setattr("ossia.ladder.run.for_device", lambda _: TritonTraining())
                reports.append(ladder.trainer(config, settings, tmp_path).step())
        expected, found = reports
        # GPT-2's attention drops other probabilities than on the CPU.
        error = 0.02 if config.dropout.attention else 1e-4
        assert found.loss == pytest.approx(expected.loss, rel=error), rung.name
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=error), rung.name
        if expected.balance is not None:
            assert found.balance == pytest.approx(expected.balance, rel=error), rung.name
