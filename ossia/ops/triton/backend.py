"""The Triton backend: all its operations together."""

from __future__ import annotations

from ossia.ops.triton.norm import Norms


class Triton(Norms):
    """Every operation that has a kernel; the reference computes the rest."""

    name = "triton"


TRITON = Triton()
