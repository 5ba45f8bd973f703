"""The feed-forward half of a layer: one network, or experts and a router."""

from __future__ import annotations

from torch import Tensor, nn

from ossia.config import GELU, MLPConfig, MoEConfig, Role
from ossia.model.linear import Experts, Linear, project
from ossia.ops import Backend, ExpertWeights, Norm, RouterWeights


class MLP(nn.Module):
    """x (..., hidden), normalised -> (..., hidden) through one hidden layer, plus the residual."""

    def __init__(self, config: MLPConfig, hidden_size: int, ops: Backend) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        gated = not isinstance(config.activation, GELU)
        inter = config.intermediate_size
        inwards, outwards = (hidden_size, inter), (inter, hidden_size)
        self.gate = Linear(inwards, Role.GATE, config.bias, ops) if gated else None
        self.up = Linear(inwards, Role.UP, config.bias, ops)
        self.down = Linear(outwards, Role.DOWN, config.bias, ops)

    def forward(self, x: Tensor, norm: Norm, residual: Tensor | None = None) -> Tensor:
        activation = self.config.activation
        if self.gate is None or isinstance(activation, GELU):
            (up,) = project(x, norm, self.up)
            return self.down(self.ops.gelu(up), residual)
        gate, up = project(x, norm, self.gate, self.up)
        return self.down(self.ops.gated(gate, up, activation), residual)


class MoE(nn.Module):
    """x (..., hidden), normalised -> (..., hidden): the weighted sum of chosen experts, plus the
    residual.
    """

    def __init__(self, config: MoEConfig, hidden_size: int, ops: Backend) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        experts, inter, bias = config.num_experts, config.intermediate_size, config.bias
        self.router = Linear((hidden_size, experts), Role.ROUTER, bias, ops)
        gate_up, down = (experts, hidden_size, 2 * inter), (experts, inter, hidden_size)
        self.gate_up = Experts(gate_up, Role.EXPERT_GATE_UP, bias, config.format)
        self.down = Experts(down, Role.EXPERT_DOWN, bias, config.format)

    @property
    def experts(self) -> ExpertWeights:
        """The weights of all experts, as `Backend.moe` takes them."""
        gate_up, down = self.gate_up, self.down
        return ExpertWeights(
            gate_up.value, gate_up.bias, down.value, down.bias, self.config.activation
        )

    def forward(self, x: Tensor, norm: Norm, residual: Tensor | None = None) -> Tensor:
        config, router = self.config, self.router
        weights = RouterWeights(router.value, router.bias, config.experts_per_token, config.router)
        residual = None if residual is None else residual.flatten(0, -2)
        out = self.ops.normed_moe(x.flatten(0, -2), norm, weights, self.experts, residual=residual)
        return out.view(x.shape)


def build_feedforward(config: MLPConfig | MoEConfig, hidden_size: int, ops: Backend) -> MLP | MoE:
    """The module for a layer's feed-forward config."""
    match config:
        case MLPConfig():
            return MLP(config, hidden_size, ops)
        case MoEConfig():
            return MoE(config, hidden_size, ops)
