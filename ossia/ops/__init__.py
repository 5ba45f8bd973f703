"""Functions on tensors, one signature in several backends."""

from ossia.ops.backend import NAMES, REFERENCE, Backend, select

__all__ = ["NAMES", "REFERENCE", "Backend", "select"]
