"""The Triton backend, for CUDA cards of compute capability 8.0 (Ampere) and later.

Each kernel is tested against the reference by Triton's interpreter on the CPU, and compiled for
each architecture without a card. Needs the package triton, which PyTorch's CUDA builds bring.
"""

from __future__ import annotations

from ossia.ops.triton.backend import TRITON, Triton
from ossia.ops.triton.launch import Card, card, launch, recording, unusable

__all__ = ["TRITON", "Card", "Triton", "card", "launch", "recording", "unusable"]
