"""The choice of a backend."""

from __future__ import annotations

import logging

import torch

from ossia.errors import OssiaError
from ossia.ops.backend import REFERENCE, Backend

NAMES = ("reference", "cpu", "triton")

_log = logging.getLogger(__name__)


def check(name: str, device: torch.device | str, *, rounds: bool = False) -> None:
    """Raise OssiaError for an unknown backend, and for one that is not for the device, or that does
    not round where that is asked for.
    """
    if name not in ("auto", *NAMES):
        raise OssiaError(f"unknown backend {name!r}; there are: auto, {', '.join(NAMES)}")
    if name == "cpu" and torch.device(device).type != "cpu":
        raise OssiaError(f"backend cpu runs on the CPU, not on {device}: leave --backend at auto")
    if name == "triton" and torch.device(device).type != "cuda":
        raise OssiaError(
            f"backend triton runs on a CUDA card, not on {device}: use --device cuda, or leave "
            "--backend at auto"
        )
    if rounds and (name == "reference" or torch.device(device).type != "cpu"):
        raise OssiaError(
            "--activations int8 is for the backend cpu, which runs on the CPU: leave it out "
            f"{'with --backend reference' if name == 'reference' else f'on {device}'}"
        )


def select(
    name: str = "auto", device: torch.device | str = "cpu", *, rounds: bool = False
) -> Backend:
    """The backend of that name, or for `auto` the fastest that runs on the device; logs the choice.

    rounds: prompts' activations to int8 (`cpu.prompts`). Raises OssiaError for an unknown name, or
    a backend that cannot run here.
    """
    check(name, device, rounds=rounds)
    kind = torch.device(device).type
    if name != "reference" and kind == "cuda":
        return _triton(torch.device(device), required=name == "triton")
    if name == "reference" or kind != "cpu":
        _log.info("backend: reference, plain PyTorch (%s)", device)
        return REFERENCE
    return _cpu(required=name == "cpu" or rounds, rounds=rounds)


def lacking(device: torch.device) -> str | None:
    """What a CUDA card or this installation lacks to run the kernels; None if it is nothing."""
    try:
        from ossia.ops import triton
    except ImportError as error:
        return f"the package triton cannot be imported ({error}): pip install 'ossia[gpu]'"
    return triton.unusable(device)


def _triton(device: torch.device, *, required: bool) -> Backend:
    """The kernels for a card; if it or this installation lacks what they need, the reference,
    unless they are required.
    """
    problem = lacking(device)
    if problem is None:
        from ossia.ops import triton

        _log.info("backend: triton (%s)", torch.cuda.get_device_name(device))
        return triton.TRITON
    if required:
        raise OssiaError(f"backend triton cannot run: {problem}; use --backend reference")
    _log.warning("backend: reference, plain PyTorch and slow; %s", problem)
    return REFERENCE


def _cpu(*, required: bool, rounds: bool) -> Backend:
    """The native kernels; if they were not built, the reference, unless they are required."""
    try:
        from ossia.ops import cpu
    except ImportError as error:
        if required:
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
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    _log.info("backend: cpu, native kernels (%s, %s)", machine.isa, threads)
    if not rounds:
        return cpu.CPU
    from ossia.ops.cpu import prompts

    if not machine.multiplies_bytes:
        raise OssiaError(
            "--activations int8: this processor's AMX unit multiplies no int8, and its products in "
            "bfloat16 are faster than int8 without it: leave --activations out"
        )
    return prompts.ROUNDED_PROMPTS
