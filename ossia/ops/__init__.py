"""Operations on tensors: one Backend class that defines them, and subclasses that are faster."""

from ossia.ops.backend import REFERENCE, Backend, Recorded, Recorder
from ossia.ops.select import NAMES, check, lacking, select
from ossia.ops.values import (
    AttentionSpec,
    Documents,
    ExpertWeights,
    Norm,
    RopeTable,
    RouterWeights,
    Routing,
)

__all__ = [
    "NAMES",
    "REFERENCE",
    "AttentionSpec",
    "Backend",
    "Documents",
    "ExpertWeights",
    "Norm",
    "Recorded",
    "Recorder",
    "RopeTable",
    "RouterWeights",
    "Routing",
    "check",
    "lacking",
    "select",
]
