"""Experts in host memory as a kind of weight, of layers whose other weights are on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ossia.ops import Backend, ExpertWeights, Routing
from ossia.ops.weight import ExpertsKind, Matrix, Tensors, Weight, recipe_of, tensors_of
from ossia.system.upload import Arriving, Memory, Upload, link_to


@dataclass
class Host:
    """What the layers with experts on the host share.

    backend: computes there. most: the tokens of a step up to which it does, None for any number;
    for more, a layer's experts are sent to the GPU, which computes them and drops them.
    """

    backend: Backend
    most: int | None

    def compute(
        self, x: Tensor, routing: Routing, experts: ExpertWeights, dtype: torch.dtype | None
    ) -> Tensor:
        """As Backend.moe, of x on a GPU and experts on the host: waits for x, and returns a result
        on the GPU.
        """
        near, *own = _to_host(x, *routing)
        return _to_device(self.backend.moe(near, Routing(*own), experts, dtype=dtype), x.device)


@dataclass(frozen=True)
class HostExperts(ExpertsKind):
    """The matrices (experts, rows, cols) of one layer, on the CPU, as are their biases."""

    stack: Matrix
    host: Host

    @property
    def shape(self) -> torch.Size:
        return self.stack.shape

    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.stack)

    def recipe(self) -> Callable[[Tensors], Weight]:
        return partial(_built, recipe_of(self.stack), self.host)

    def whole(self) -> Matrix:
        return self.stack

    def moe(
        self,
        backend: Backend,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        residual: Tensor | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """As ExpertsKind.moe: x (tokens, hidden), its routing and the residual are on the GPU, and
        so is the result.
        """
        near = host_weights(experts)
        result = x.dtype if dtype is None else dtype
        # A residual is added before the sum of the experts is rounded, as kernels do it.
        wide = result if residual is None else torch.promote_types(result, torch.float32)
        if self.host.most is None or len(x) <= self.host.most:
            out = self.host.compute(x, routing, near, wide)
        else:
            out = backend.moe(x, routing, sent(near, backend, x.device), dtype=wide)
        if residual is None:
            return out
        return (residual + backend.reduce(out)).to(torch.promote_types(result, residual.dtype))


def host_weights(experts: ExpertWeights) -> ExpertWeights:
    """A layer's HostExperts as the stacks that they are on the CPU."""
    gate_up, down = experts.gate_up, experts.down
    assert isinstance(gate_up, HostExperts)
    assert isinstance(down, HostExperts)
    return replace(experts, gate_up=gate_up.stack, down=down.stack)


def sent(experts: ExpertWeights, backend: Backend, device: torch.device) -> ExpertWeights:
    """A layer's experts on a device, placed by its backend. Takes as much memory there as they do
    on the host, and until they are placed up to twice as much.
    """
    link = link_to(device)
    if link is None:
        raise ValueError(f"experts cannot be sent to {device}")
    with Upload(link) as upload:
        # All at once, so that the bus does not wait while weights are placed.
        stacks = [_Stack(upload, weight) for weight in (experts.gate_up, experts.down)]
        gate_up, down = (stack.placed(backend) for stack in stacks)
        biases = [
            None if bias is None else upload.start(Memory(bias), tuple(bias.shape), bias.dtype)
            for bias in (experts.gate_up_bias, experts.down_bias)
        ]
        of_gate_up, of_down = (None if bias is None else bias.tensor() for bias in biases)
        return replace(
            experts,
            gate_up=gate_up,
            gate_up_bias=of_gate_up,
            down=down,
            down_bias=of_down,
        )


class _Stack:
    """A stack under way."""

    def __init__(self, upload: Upload, weight: Weight) -> None:
        self._recipe = recipe_of(weight)
        self._tensors: dict[str, Arriving] = {}
        self._transposed: set[str] = set()
        for name, tensor in tensors_of(weight).items():
            source = tensor.detach()
            if not source.is_contiguous():  # as the experts of some checkpoints
                self._transposed.add(name)
                source = source.mT.contiguous()
            self._tensors[name] = upload.start(Memory(source), tuple(source.shape), source.dtype)

    def placed(self, backend: Backend) -> Weight:
        """The stack on the device; what arrived is dropped if the backend copies it."""
        tensors = {}
        for name in list(self._tensors):
            tensor = self._tensors.pop(name).tensor()
            tensors[name] = tensor.mT if name in self._transposed else tensor
        return backend.place("", self._recipe(tensors))


def _to_host(*tensors: Tensor) -> list[Tensor]:
    """Copies on the CPU, after one wait."""
    if not tensors[0].is_cuda:
        return [tensor.cpu() for tensor in tensors]
    copies = [
        torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
        for x in tensors
    ]
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, without a wait."""
    if device.type != "cuda":
        return x.to(device)
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)
    return pinned.to(device, non_blocking=True)


def _built(recipe: Callable[[Tensors], Weight], host: Host, tensors: Tensors) -> HostExperts:
    stack = recipe(tensors)
    assert not isinstance(stack, ExpertsKind)
    return HostExperts(stack, host)  # type: ignore[arg-type]  # a Matrix, as it was
