"""What the bounds of gpt-oss's SwiGLU cut: shares of the values that pass through it."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.config import ClampedSwiGLU
from ossia.ops import ExpertWeights, Routing
from ossia.ops.weight import ExpertsKind, MatrixKind, Weight, dense

# Elements of experts' matrices that are unpacked to count what is cut, in all layers together: a
# packed matrix takes longer to unpack than to multiply.
_UNPACKED = 1 << 30


class Clamps:
    """Counts of the values that a clamp bounds, by layer.

    counted: int64 (layers, 3): values of the gate (as many as of `up`), gates above the limit, and
    ups beyond it on either side. choices: int64 (layers, 2): tokens' choices of experts whose
    values were counted, and all.
    """

    def __init__(self, layers: int) -> None:
        self.counted = torch.zeros(layers, 3, dtype=torch.int64)
        self.choices = torch.zeros(layers, 2, dtype=torch.int64)
        self._budget = _UNPACKED // layers

    def count(self, layer: int, gate: Tensor, up: Tensor, activation: ClampedSwiGLU) -> None:
        limit = activation.limit
        cut = (int((gate > limit).sum()), int((up.abs() > limit).sum()))
        self.counted[layer] += torch.tensor([gate.numel(), *cut])

    def sample(self, layer: int, x: Tensor, routing: Routing, experts: ExpertWeights) -> None:
        """Count what is cut in the experts that most of the tokens x (tokens, hidden) chose; in all
        of them, where their matrices are small.
        """
        assert isinstance(experts.activation, ClampedSwiGLU)
        gate_up, bias = experts.gate_up, experts.gate_up_bias
        uses = routing.experts.flatten().bincount(minlength=gate_up.shape[0])
        most = max(1, self._budget // (gate_up.shape[1] * gate_up.shape[2]))
        self.choices[layer, 1] += int(uses.sum())
        for expert in uses.topk(min(most, len(uses))).indices.tolist():
            tokens = (routing.experts == expert).any(-1)
            if not int(uses[expert]):
                break
            values = F.linear(x[tokens].float(), _matrix(gate_up, expert))
            values = values if bias is None else values + bias[expert].float()
            self.count(layer, values[..., 0::2], values[..., 1::2], experts.activation)
            self.choices[layer, 0] += int(uses[expert])

    @staticmethod
    def unclamped(activation: ClampedSwiGLU) -> ClampedSwiGLU:
        """The same function without bounds."""
        return replace(activation, limit=torch.finfo(torch.float32).max)


def _matrix(weight: Weight, expert: int) -> Tensor:
    """One expert's matrix, float32."""
    stack = weight.whole() if isinstance(weight, ExpertsKind) else weight
    assert isinstance(stack, Tensor | MatrixKind)
    return dense(stack, expert)
