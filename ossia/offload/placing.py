"""Which layers' experts are in a GPU's memory, and which in the host's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from ossia.model import Decoder
from ossia.model.feedforward import MoE
from ossia.model.linear import Experts
from ossia.offload.host import Host, HostExperts, host_weights, sent
from ossia.ops import Backend, Routing
from ossia.ops.weight import MatrixKind
from ossia.system.memory import format_size

_LARGEST = 4096  # tokens that the host is tried with

_log = logging.getLogger(__name__)


def kept(layers: Mapping[int, int], size: int) -> tuple[int, ...]:
    """The layers, of these with the bytes of their experts, that fit in `size`: the first ones."""
    found, used = [], 0
    for layer, nbytes in layers.items():
        used += nbytes
        if used > size:
            break
        found.append(layer)
    return tuple(found)


def modules(layers: Sequence[int]) -> set[str]:
    """The names of the modules with the experts of these layers."""
    return {f"layers.{i}.feedforward.{part}" for i in layers for part in ("gate_up", "down")}


def attach(decoder: Decoder, layers: Sequence[int], backend: Backend, *, sends: bool) -> None:
    """Have `backend` compute the experts of these layers, which are on the CPU; if `sends`, steps
    of so many tokens that a copy is faster are for the decoder's own backend. Logs both.
    """
    host, size = Host(backend, None), 0
    for name in sorted(modules(layers)):
        module = decoder.get_submodule(name)
        assert isinstance(module, Experts)
        module.place(name, backend)
        stack = module.value
        assert isinstance(stack, Tensor | MatrixKind)
        module.replace(HostExperts(stack, host))
        size += sum(tensor.nbytes for tensor in module.state_dict().values())
    first = decoder.get_submodule(f"layers.{layers[0]}.feedforward")
    assert isinstance(first, MoE)
    more = f"{decoder.device} has no room for a layer's in large steps"
    with suppress(torch.OutOfMemoryError):
        if sends:
            host.most, copying = _most(first, host, decoder)
            more = (
                f"steps of more than {host.most} tokens send a layer's to {decoder.device}, "
                f"in {copying * 1e3:,.0f} ms"
            )
    _log.info(
        "experts: those of %d of %d layers, %s, stay in host memory and are computed there, "
        "without a CUDA graph; %s",
        len(layers),
        len(decoder.layers),
        format_size(size),
        more,
    )


@torch.inference_mode()
def _most(moe: MoE, host: Host, decoder: Decoder) -> tuple[int, float]:
    """The most tokens, a power of two or 0, that the host computes in less time than the layer's
    experts take to the device, and that time in seconds.
    """
    near = host_weights(moe.experts)
    device, config = decoder.device, moe.config
    copying = _seconds(lambda: sent(near, decoder.ops, device), device)
    generator = torch.Generator().manual_seed(0)
    tokens = 1
    while tokens <= _LARGEST:
        x = torch.randn(tokens, decoder.config.hidden_size, generator=generator)
        likely = torch.rand(tokens, config.num_experts, generator=generator)
        chosen = likely.topk(config.experts_per_token).indices
        routing = Routing(chosen, torch.full(chosen.shape, 1 / config.experts_per_token))
        there = x.to(device, decoder.dtype), Routing(*(part.to(device) for part in routing))
        if _seconds(partial(host.compute, *there, near, None), device) > copying:
            break
        tokens *= 2
    return tokens // 2, copying


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time of a second run: the first one reads what is not in the page cache."""
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    return seconds
