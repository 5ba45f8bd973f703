"""The native CPU backend: weights are read as they lie in the checkpoint, at the speed of memory.

Linear layers, MXFP4 and dense experts, paged attention, the small operations between them, and
sampling are native. The reference computes the rest (training, float16).

Where integers are multiplied (MXFP4 and int8 weights, bfloat16 weights of more than 16 tokens, and
with AVX-512 the attention of several queries), numbers in bfloat16 become words that share a scale:
an error of 1e-5 to 3e-4, a tenth of bfloat16's own or less. In matrix products, activations in
float32 are the sum of two such vectors, an error of 1e-7.
"""

from __future__ import annotations

from ossia.ops.backend import Recorder
from ossia.ops.cpu.activation import Activations
from ossia.ops.cpu.attention import PagedAttention
from ossia.ops.cpu.experts import Experts
from ossia.ops.cpu.native import Machine, machine, using
from ossia.ops.cpu.norm import Norms
from ossia.ops.cpu.recorder import CPURecorder
from ossia.ops.cpu.rope import Rotary
from ossia.ops.cpu.sampling import Sampling

__all__ = ["CPU", "Machine", "NativeBackend", "machine", "using"]


class NativeBackend(PagedAttention, Experts, Norms, Rotary, Activations, Sampling):
    """All native operations together."""

    name = "cpu"

    def recorder(self) -> Recorder:
        return CPURecorder()


CPU = NativeBackend()
