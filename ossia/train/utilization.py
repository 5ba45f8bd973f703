"""Model FLOPs utilization: the share of the machine's peak that a run uses."""

from __future__ import annotations

import time

import torch

from ossia.config import ModelConfig
from ossia.insight.counts import training_flops
from ossia.train import device, parallel
from ossia.train.loop import DTYPES, StepReport
from ossia.train.settings import Settings

# Rows and columns of the matrices that measure the peak: enough to fill the device.
_SIZES = {"cpu": 2048, "cuda": 8192}
_TRIES = 3


class Utilization:
    """Model FLOPs utilization (Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311):
    the FLOPs that the model needs, over the machine's peak.

    Recomputation does not count as needed. The peak is measured when the object is made: the
    fastest product of two large matrices in the run's precision, times the number of processes,
    each of which is assumed to have cores, or a GPU, of its own.
    """

    def __init__(
        self, config: ModelConfig, settings: Settings, on: torch.device = device.CPU
    ) -> None:
        self.peak = measured_peak(DTYPES[settings.dtype], on) * parallel.size()
        self._short = settings.steps - settings.long_steps
        lengths = (settings.length, settings.long_length or settings.length)
        self._flops = [training_flops(config, length) for length in lengths]

    def of(self, report: StepReport) -> float:
        """From 0 to about 1."""
        per_token = self._flops[report.step > self._short]
        return report.tokens_per_second * per_token / self.peak


def measured_peak(dtype: torch.dtype, on: torch.device = device.CPU) -> float:
    """FLOP/s of the fastest of a few matrix products on a device.

    Of random numbers: a GPU multiplies ones faster, because fewer bits change.
    """
    size = _SIZES[on.type]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(on, dtype) for _ in range(2))
    seconds = []
    for _ in range(_TRIES):
        device.wait_for(on)
        start = time.perf_counter()
        torch.mm(a, b)
        device.wait_for(on)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
