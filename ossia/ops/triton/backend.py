"""The Triton backend: all its operations together."""

from __future__ import annotations

from ossia.ops.triton.attention import PagedAttention
from ossia.ops.triton.experts import Experts
from ossia.ops.triton.norm import Norms
from ossia.ops.triton.sampling import Sampling


class Triton(PagedAttention, Experts, Norms, Sampling):
    """Every operation that has a kernel; the reference computes the rest."""

    name = "triton"


TRITON = Triton()
