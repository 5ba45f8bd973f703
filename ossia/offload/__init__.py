"""Experts read from disk on demand, for checkpoints larger than memory."""

from ossia.offload.experts import store_of
from ossia.offload.store import ExpertReads

__all__ = ["ExpertReads", "store_of"]
