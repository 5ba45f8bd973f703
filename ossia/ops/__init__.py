"""Functions on tensors, one signature in several backends."""

from ossia.ops.backend import BACKENDS, REFERENCE, Backend, select

__all__ = ["BACKENDS", "REFERENCE", "Backend", "select"]
