"""The native CPU backend: weights are read as they lie in the checkpoint, at the speed of memory.

Native are linear layers, experts in MXFP4 and dense ones, attention over pages, and the small
operations between them. The rest (training, float16) the reference does.

Where integers are multiplied (MXFP4 and int8 weights, and bfloat16 weights of more than 16 tokens),
numbers in bfloat16 become words that share a scale: an error of 1e-5 to 3e-4, a tenth of bfloat16's
own or less. Activations in float32 are the sum of two such vectors, an error of 1e-7.
"""

from __future__ import annotations

from dataclasses import replace

from ossia.ops.backend import REFERENCE
from ossia.ops.cpu.activation import clamped_swiglu, gelu, swiglu
from ossia.ops.cpu.attention import paged_attention
from ossia.ops.cpu.capture import capture
from ossia.ops.cpu.experts import moe, route
from ossia.ops.cpu.linear import linear, linears
from ossia.ops.cpu.native import Machine, machine, using
from ossia.ops.cpu.norm import layer_norm, rms_norm, rotate
from ossia.ops.cpu.quantize import quantize
from ossia.system.processors import usable

__all__ = ["CPU", "Machine", "machine", "usable", "using"]

CPU = replace(
    REFERENCE,
    name="cpu",
    linear=linear,
    linears=linears,
    quantize=quantize,
    layer_norm=layer_norm,
    rms_norm=rms_norm,
    rotate=rotate,
    gelu=gelu,
    swiglu=swiglu,
    clamped_swiglu=clamped_swiglu,
    paged_attention=paged_attention,
    route=route,
    moe=moe,
    capture=capture,
)
