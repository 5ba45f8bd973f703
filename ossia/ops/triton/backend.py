"""The Triton backend: all its operations together."""

from __future__ import annotations

from ossia.ops.backend import Recorder
from ossia.ops.triton.activation import Activations
from ossia.ops.triton.attention import PagedAttention
from ossia.ops.triton.experts import Experts
from ossia.ops.triton.launch import INTERPRETED
from ossia.ops.triton.linear import Dense
from ossia.ops.triton.norm import Norms
from ossia.ops.triton.recorder import CUDAGraphs, GraphRecorder
from ossia.ops.triton.rope import Rotary
from ossia.ops.triton.sampling import Sampling


class Triton(PagedAttention, Dense, Experts, Norms, Rotary, Activations, Sampling):
    """Every operation that has a kernel; the reference computes the rest."""

    name = "triton"

    def recorder(self) -> Recorder | None:
        """Of CUDA graphs; none where kernels are interpreted."""
        return None if INTERPRETED else GraphRecorder(CUDAGraphs())


TRITON = Triton()
