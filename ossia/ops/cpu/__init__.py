"""The native CPU backend: weights are read as they lie in the checkpoint, at the speed of memory.

Native are linear layers of few tokens, experts in MXFP4, attention over pages, and the small
operations between them.
The rest (training, float16, large dense products) the reference does.

Activations in bfloat16 meet MXFP4 weights as int16 with one scale for each token, an error of 3e-5,
a hundredth of bfloat16's own; those in float32 as the sum of two such vectors, an error of 1e-7.
"""

from __future__ import annotations

from dataclasses import replace

from ossia.ops.backend import REFERENCE
from ossia.ops.cpu.activation import clamped_swiglu, gelu, swiglu
from ossia.ops.cpu.attention import paged_attention
from ossia.ops.cpu.experts import moe, route
from ossia.ops.cpu.linear import linear, linears
from ossia.ops.cpu.native import Machine, machine, using
from ossia.ops.cpu.norm import layer_norm, rms_norm, rotate
from ossia.ops.cpu.processors import usable

__all__ = ["CPU", "Machine", "machine", "usable", "using"]

CPU = replace(
    REFERENCE,
    name="cpu",
    linear=linear,
    linears=linears,
    layer_norm=layer_norm,
    rms_norm=rms_norm,
    rotate=rotate,
    gelu=gelu,
    swiglu=swiglu,
    clamped_swiglu=clamped_swiglu,
    paged_attention=paged_attention,
    route=route,
    moe=moe,
)
