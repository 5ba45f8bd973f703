"""Training on several processes: sharded parameters (FSDP2) and expert parallelism. All functions
also work with a single process.

`torchrun` starts the processes and sets their ranks; each trains on its rows of every batch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ossia.errors import OssiaError
from ossia.model.decoder import Decoder
from ossia.model.feedforward import MoE
from ossia.ops import Backend, ExpertWeights, Routing
from ossia.ops.weight import ExpertsKind, Tensors, Weight, recipe_of, tensors_of
from ossia.train.device import CPU

Value = TypeVar("Value")


class FirstFailed(OssiaError):
    """An error of the first process, raised on the others; only the first reports it."""


def join(device: torch.device = CPU) -> None:
    """Join the process group, if torchrun started several processes: over NCCL if each trains on a
    GPU. What they say to each other goes over gloo, so that no GPU has to wait for it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Wait until all processes have called this."""
    if dist.is_initialized():
        dist.barrier()


def first_says(question: Callable[[], Value]) -> Value:
    """The first process evaluates `question`; returns its answer on all processes."""
    answers: list[Any] = [question() if rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(answers)
    return answers[0]


def first_does(act: Callable[[], Value]) -> Value:
    """The first process calls `act`, the others wait; returns its result on all. Its OssiaError is
    raised there, and FirstFailed on the others.
    """
    result: Any = None
    problem: OssiaError | None = None
    if rank() == 0:
        try:
            result = act()
        except OssiaError as error:
            problem = error
    result, message = first_says(lambda: (result, None if problem is None else str(problem)))
    if problem is not None:
        raise problem
    if message is not None:
        raise FirstFailed(message)
    return result


def mean(value: Tensor) -> Tensor:
    """The mean over all processes."""
    if not dist.is_initialized():
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / size()


def own_rows(batch: Tensor) -> Tensor:
    """This process's share of the rows; the number of processes divides their number."""
    return batch.chunk(size())[rank()]


def shard(root: nn.Module, decoder: Decoder, *, experts: bool) -> None:
    """Shard the parameters of `root`, which contains the decoder, over the processes.

    FSDP2 gathers a layer's weights when they are needed (Zhao et al. 2023,
    https://arxiv.org/abs/2304.11277). With `experts` each process holds whole experts instead, and
    tokens are sent to them. Gradients are means over the processes.
    """
    if not dist.is_initialized():
        return
    mesh = init_device_mesh(decoder.device.type, (size(),))
    own: set[nn.Parameter] = set()
    if experts:
        for module in decoder.modules():
            if isinstance(module, MoE):
                own |= _divide_experts(module, mesh)
    # torch warns about writes into a returned view; nothing here writes into one.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, ignored_params=own)
    fully_shard(root, mesh=mesh, ignored_params=own)


def gathered(decoder: nn.Module) -> dict[str, Tensor]:
    """The complete weights by name, on the CPU; all processes must call this."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p.detach()).cpu()
        for name, p in decoder.state_dict().items()
    }


def _divide_experts(moe: MoE, mesh: DeviceMesh) -> set[nn.Parameter]:
    count = moe.config.num_experts
    if count % mesh.size():
        raise OssiaError(
            f"--expert-parallel: {count} experts do not divide among {mesh.size()} processes"
        )
    for part in (moe.gate_up, moe.down):
        for name, parameter in list(part.named_parameters()):
            own = nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)]))
            # Each process's loss is a mean over its tokens; the tokens of all arrive here.
            own.register_hook(lambda gradient: gradient / mesh.size())
            if name == "bias":
                part.bias = own
            else:
                part.replace(Sharded(own))
    return {p for part in (moe.gate_up, moe.down) for p in part.parameters()}


@dataclass(frozen=True)
class Sharded(ExpertsKind):
    """A stack of experts, divided equally among the processes: a DTensor, or one that training
    rounds.
    """

    inner: Weight

    @property
    def shape(self) -> torch.Size:
        return self.inner.shape

    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.inner)

    def recipe(self) -> Callable[[Tensors], Weight]:
        return partial(_sharded, recipe_of(self.inner))

    def whole(self) -> Tensor:
        raise ValueError("sharded experts are gathered before they are saved")

    def local(self) -> Weight:
        """The experts of this process."""
        tensors = {name: _local(tensor) for name, tensor in self.tensors().items()}
        return recipe_of(self.inner)(tensors)

    def moe(
        self,
        backend: Backend,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        residual: Tensor | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """As ExpertsKind.moe: each token is sent to the processes that hold its experts, and the
        results return to be weighted here.

        An all-to-all exchange moves only the rows that were routed. Gathering all tokens everywhere
        would be simpler, but would cost each process the traffic and memory of all.
        """
        assert isinstance(experts.down, Sharded)
        local = replace(
            experts,
            gate_up=self.local(),
            gate_up_bias=_local(experts.gate_up_bias),
            down=experts.down.local(),
            down_bias=_local(experts.down_bias),
        )
        each, chosen = local.gate_up.shape[0], routing.experts.shape[1]
        order = routing.experts.flatten().argsort(stable=True)  # by expert, hence by process
        wanted = routing.experts.flatten()[order]
        sent = torch.bincount(wanted // each, minlength=size())
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        counts = received.tolist(), sent.tolist()
        numbers = torch.empty(sum(counts[0]), dtype=wanted.dtype, device=wanted.device)
        dist.all_to_all_single(numbers, wanted, *counts)
        rows = _travel(x[order // chosen], *counts)
        own = (numbers - rank() * each)[:, None]
        if not len(rows):  # a dummy row: the backward pass needs all processes
            rows, own = x.new_zeros(1, x.shape[1]) + rows.sum(), own.new_zeros(1, 1)
        ones = torch.ones(len(rows), 1, dtype=routing.weights.dtype, device=rows.device)
        done = backend.moe(rows, Routing(own, ones), local)[: len(numbers)]
        back = _travel(done, counts[1], counts[0])[order.argsort()]
        wide = torch.promote_types(x.dtype, torch.float32)
        out = back.view(*routing.experts.shape, -1).to(wide) * routing.weights[..., None].to(wide)
        out = out.sum(1).to(x.dtype if dtype is None else dtype)
        return out if residual is None else residual + out


def _sharded(inner: Callable[[Tensors], Weight], tensors: Tensors) -> Sharded:
    return Sharded(inner(tensors))


def _local(tensor: Tensor | None) -> Any:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _travel(rows: Tensor, received: list[int], sent: list[int]) -> Tensor:
    """Send `sent` rows to each process, in order; returns the rows received."""
    group = dist.group.WORLD
    assert group is not None
    moved = all_to_all_single_autograd(rows.contiguous(), received, sent, group)
    return torch.ops._c10d_functional.wait_tensor(moved)
