"""What a backend is: a function for each operation, with the signature of `ossia.ops.reference`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.errors import OssiaError
from ossia.ops import int8, reference
from ossia.ops.int8 import Int8

Op = Callable[..., Tensor]
Ops = Callable[..., tuple]
Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None] | None]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """The operations a model is made of. A value, so that a model can be copied and pickled, and a
    backend that is fast at some operations takes the others from another by `dataclasses.replace`.

    capture: runs a function and returns its result, with what does the same work again in the same
        memory at less cost, or None where the function does what cannot be recorded. As with a CUDA
        graph, what differs from one time to the next must lie in tensors that were there before.
    """

    name: str
    linear: Op
    linears: Ops
    quantize: Callable[[Tensor], Int8]
    layer_norm: Op
    rms_norm: Op
    rotate: Op
    gelu: Op
    swiglu: Op
    clamped_swiglu: Op
    attention: Op
    paged_attention: Op
    route: Ops
    moe: Op
    capture: Capture | None = None


REFERENCE = Backend(
    name="reference",
    linear=reference.linear,
    linears=reference.linears,
    quantize=int8.quantize,
    layer_norm=reference.layer_norm,
    rms_norm=reference.rms_norm,
    rotate=reference.rotate,
    gelu=reference.gelu,
    swiglu=reference.swiglu,
    clamped_swiglu=reference.clamped_swiglu,
    attention=reference.attention,
    paged_attention=reference.paged_attention,
    route=reference.route,
    moe=reference.moe,
)

NAMES = ("reference", "cpu")


def select(name: str = "auto", device: torch.device | str = "cpu") -> Backend:
    """The backend of that name, or for `auto` the fastest that runs on the device; logs which.

    Raises OssiaError for an unknown name, and for a backend that cannot run here.
    """
    kind = torch.device(device).type
    if name not in ("auto", *NAMES):
        raise OssiaError(f"unknown backend {name!r}; there are: auto, {', '.join(NAMES)}")
    if name == "cpu" and kind != "cpu":
        raise OssiaError(f"backend cpu runs on the CPU, not on {device}: leave --backend at auto")
    if name == "reference" or kind != "cpu":
        _log.info("backend: reference, plain PyTorch (%s)", device)
        return REFERENCE
    try:
        from ossia.ops import cpu
    except ImportError as error:
        if name == "cpu":
            raise OssiaError(
                f"backend cpu is not in this installation ({error}): install a C++ compiler and "
                "ossia again, or use --backend reference"
            ) from error
        _log.warning(
            "backend: reference, plain PyTorch and slow; the native kernels were not built when "
            "ossia was installed (is there a C++ compiler?)"
        )
        return REFERENCE
    machine = cpu.machine()
    if machine.remark:
        _log.warning("%s", machine.remark)
    _log.info("backend: cpu, native kernels (%s, %d threads)", machine.isa, machine.threads)
    return cpu.CPU
