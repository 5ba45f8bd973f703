"""The feed-forward half of a layer: one network, or several and a router."""

from __future__ import annotations

from torch import Tensor, nn

from ossia.config import (
    GELU,
    ClampedSwiGLU,
    MLPConfig,
    MoEConfig,
    Router,
)
from ossia.model.linear import Experts, Linear, project
from ossia.ops import Backend


class MLP(nn.Module):
    """x (..., hidden) -> (..., hidden) through one hidden layer, plus the residual."""

    def __init__(self, config: MLPConfig, hidden_size: int, ops: Backend) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        gated = not isinstance(config.activation, GELU)
        inter = config.intermediate_size
        self.gate = Linear(hidden_size, inter, config.bias, ops) if gated else None
        self.up = Linear(hidden_size, inter, config.bias, ops)
        self.down = Linear(inter, hidden_size, config.bias, ops)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.gate is None:
            return self.down(self.ops.gelu(self.up(x)), residual)
        activation, (gate, up) = self.config.activation, project(x, self.gate, self.up)
        if isinstance(activation, ClampedSwiGLU):
            limit, alpha = activation.limit, activation.alpha
            return self.down(self.ops.clamped_swiglu(gate, up, limit=limit, alpha=alpha), residual)
        return self.down(self.ops.swiglu(gate, up), residual)


class MoE(nn.Module):
    """x (..., hidden) -> (..., hidden), the chosen experts' weighted sum, plus the residual."""

    def __init__(self, config: MoEConfig, hidden_size: int, ops: Backend) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        experts, inter = config.num_experts, config.intermediate_size
        self.router = Linear(hidden_size, experts, config.bias, ops)
        self.gate_up = Experts(experts, hidden_size, 2 * inter, config.bias, config.format)
        self.down = Experts(experts, inter, hidden_size, config.bias, config.format)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        tokens = x.flatten(0, -2)
        experts, weights = route(self.router(tokens), self.config, self.ops)
        activation = self.config.activation
        clamped = isinstance(activation, ClampedSwiGLU)
        out = self.ops.moe(
            tokens,
            experts,
            weights,
            self.gate_up.matrices,
            self.gate_up.bias,
            self.down.matrices,
            self.down.bias,
            clamp=(activation.limit, activation.alpha) if clamped else None,
            residual=None if residual is None else residual.flatten(0, -2),
        )
        return out.view(x.shape)


def route(logits: Tensor, config: MoEConfig, ops: Backend) -> tuple[Tensor, Tensor]:
    """`ops.route` as the config has it."""
    return ops.route(
        logits,
        config.experts_per_token,
        softmax_first=config.router is not Router.TOP_K_THEN_SOFTMAX,
        renormalize=config.router is Router.SOFTMAX_THEN_TOP_K_RENORMALIZED,
    )


def build_feedforward(config: MLPConfig | MoEConfig, hidden_size: int, ops: Backend) -> MLP | MoE:
    """The module that a layer's feed-forward describes."""
    match config:
        case MLPConfig():
            return MLP(config, hidden_size, ops)
        case MoEConfig():
            return MoE(config, hidden_size, ops)
