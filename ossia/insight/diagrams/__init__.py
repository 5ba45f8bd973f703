"""Pictures of architectures, drawn from their configs, of one model or several side by side."""

from ossia.insight.diagrams.areas import parameters, read
from ossia.insight.diagrams.attention import attention
from ossia.insight.diagrams.blocks import blocks
from ossia.insight.diagrams.curves import bounds, cache, context
from ossia.insight.diagrams.experts import experts
from ossia.insight.diagrams.shape import shape

__all__ = [
    "attention",
    "blocks",
    "bounds",
    "cache",
    "context",
    "experts",
    "parameters",
    "read",
    "shape",
]
