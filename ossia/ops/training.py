"""The training backend: the reference's operations, with attention whose memory is linear in the
length, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ossia.config import Router
from ossia.ops.backend import Backend, Where
from ossia.ops.paged import LayerKV
from ossia.ops.tiled_attention import Seen, attend
from ossia.ops.values import AttentionSpec, RopeTable, Routing


class Training(Backend):
    """The definition, with attention whose memory is linear in the length.

    on_route, where it is set, is called with the logits (tokens, experts) and the number of chosen
    experts whenever a router's logits are routed: what a balance loss reads.
    """

    name = "training"

    def __init__(self) -> None:
        self.on_route: Callable[[Tensor, int], None] | None = None
        self._matrix_unit = torch.cpu._is_amx_tile_supported()  # not asked in compiled layers

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        where: Where = None,
        rope: RopeTable | None = None,
    ) -> Tensor:
        """As Backend.attention; over whole rows in the dtype of v, or wider.

        Scores exist only within a tile, and a window's mask covers one block. With dropout, and on
        other devices than the CPU, the definition runs instead.
        """
        fused = q.device.type == "cpu" and not spec.dropout and q.shape[1] == k.shape[1]
        if isinstance(where, LayerKV) or not fused or not q.numel():
            with torch.autocast(q.device.type, enabled=False):  # which would round the scores
                return super().attention(q, k, v, spec, where, rope)
        if rope is not None:
            q, k = self.rotate(q, rope), self.rotate(k, rope)
        documents = None if where is None else where.ids
        q, k = q.to(v.dtype), k.to(v.dtype)
        seen = Seen(documents, spec.window)
        # Torch's kernel is faster in float32 than in bfloat16, except on a matrix unit.
        widens = v.dtype is torch.bfloat16 and not self._matrix_unit
        return attend(q, k, v, spec.sinks, seen, torch.float32 if widens else v.dtype)

    def route(self, logits: Tensor, chosen: int, router: Router) -> Routing:
        """As Backend.route."""
        if self.on_route is not None:
            self.on_route(logits, chosen)
        return super().route(logits, chosen, router)


def for_device(device: torch.device) -> Training:
    """The training backend for the CPU or a GPU: the native one, where that was built."""
    if device.type == "cuda":
        from ossia.ops.triton.training import TritonTraining

        return TritonTraining()
    try:
        from ossia.ops.cpu.training import NativeTraining
    except ImportError:
        return Training()
    return NativeTraining()
