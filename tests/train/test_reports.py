"""What a run says of itself: where tokens go, how busy the machine is, curves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ossia.config import Router
from ossia.errors import OssiaError
from ossia.insight.counts import forward_flops
from ossia.ops import Routing
from ossia.train.balance import shares
from ossia.train.corpus import packing
from ossia.train.corpus.conversations import Example
from ossia.train.curves import Curves
from ossia.train.evaluate import windows
from ossia.train.loop import StepReport
from ossia.train.loss import IGNORED
from ossia.train.objective import Objective
from ossia.train.settings import Settings
from ossia.train.utilization import Utilization
from tests.models import build, small


def test_the_load_report_counts_the_choices_of_each_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = build(small()).eval()
    objective = Objective(decoder, balance=0.0, z_loss=0.0).eval()
    chosen: list[torch.Tensor] = []
    route = decoder.ops.route

    def keep(logits: Tensor, count: int, router: Router) -> Routing:
        chosen.append(logits)
        return route(logits, count, router)

    monkeypatch.setattr(decoder.ops, "route", keep)
    tokens = torch.randint(8, 50, (2, 20))
    with objective.routers.counting() as counts, torch.no_grad():
        objective(tokens, tokens, None, 40)
    for layer, found in shares(counts).items():
        logits = chosen[int(layer)].view(40, 4)
        expected = [sum(e in row.topk(2).indices for row in logits) / 80 for e in range(4)]
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_load_report_is_of_the_held_out_text_and_not_of_padding() -> None:
    """Of windows with and without a rest, and of packed rows whose prompts are not learned."""
    decoder = build(small()).eval()
    objective = Objective(decoder, balance=0.0, z_loss=0.0).eval()
    text = torch.randint(8, 50, (45,), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def counted(*batches: tuple[Tensor, Tensor, Tensor | None]) -> dict[int, list[float]]:
        with objective.routers.counting() as counts:
            for batch in batches:
                objective(*batch, 1)
        return {layer: count.tolist() for layer, count in counts.items()}

    parts = [(part[None], part[None], None) for part in text[:-1].split(16)]
    found = counted((*windows(text, 16), None))
    assert found == counted(*parts)
    assert sum(found[0]) == 44 * 2

    chats = [Example("", part, part.clone()) for part in text.split([10, 12, 9, 14])]
    for chat in chats:
        chat.targets[:5] = IGNORED
    whole = [(chat.inputs[None], chat.inputs[None], None) for chat in chats]
    rows = [(b.inputs, b.targets, b.documents) for b in packing.batches(chats, 24)]
    assert len(rows) == 2
    assert counted(*rows) == counted(*whole)


def test_utilization_is_the_models_arithmetic_over_the_peak() -> None:
    settings = Settings(length=16)
    utilization = Utilization(small(), settings)
    assert utilization.peak > 0
    report = StepReport(1, 10, 1.0, None, 1.0, 1e-3, 1000.0, None)
    utilization.peak = 3000.0 * forward_flops(small(), 16) / 16
    assert utilization.of(report) == pytest.approx(1)


def test_tensorboard_curves_are_written_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a stand-in for the extra package, which records what it is given."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OssiaError, match=r"pip install 'ossia\[tensorboard\]'"):
        Curves(tmp_path)

    points: dict[str, tuple[float, int]] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            points[name] = (value, step)

        def close(self) -> None:
            points["closed"] = (1.0, 0)

    stand_in = type(sys)("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    curves = Curves(tmp_path)
    evaluation = {"held_out_bits_per_byte": 2.0, "expert_shares": {"0": [0.25, 0.75]}}
    curves.add(StepReport(5, 10, 1.5, 1.1, 0.5, 1e-3, 1000.0, evaluation))
    curves.close()
    assert points["train/loss"] == (1.5, 5)
    assert points["held_out/bits_per_byte"] == (2.0, 5)
    assert points["experts_layer_0/1"] == (0.75, 5)
    assert "closed" in points
