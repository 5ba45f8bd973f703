"""A step as one CUDA graph: the host launches it once, whatever its number of kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ossia.ops.backend import Recorded, Recorder

# Padded rows cost little: a step's time is mostly that of reading the weights.
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)

_log = logging.getLogger(__name__)


class Graphs(Protocol):
    """Captures a step that has run before; raises RuntimeError if it cannot be captured."""

    def capture(self, step: Callable[[], Tensor]) -> Recorded: ...


class CUDAGraphs:
    """CUDA graphs that share one pool of memory: a graph's result lasts until the next replay."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Callable[[], Tensor]) -> Recorded:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = step()
        return Recorded(result, graph.replay)


class GraphRecorder(Recorder):
    """Records steps of padded batches; see `BUCKETS`."""

    buckets = BUCKETS

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs

    def record(self, step: Callable[[], Tensor]) -> Recorded | None:
        """As Recorder.record; None, and one line that says so, where the step waits for the host:
        weights that are fetched, or of a kind without a kernel.
        """
        step()  # kernels are compiled, and what is cached is computed, outside of the graph
        try:
            recorded = self._graphs.capture(step)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            _log.warning("decoding without a CUDA graph, more slowly: %s", reason)
            return None
        recorded.replay()  # a capture computes nothing
        return recorded
