"""The thread pool and its kernels, and what all native operations ask of their tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from ossia.errors import OssiaError
from ossia.ops._native import Machine
from ossia.system.processors import usable

DTYPES = frozenset({torch.bfloat16, torch.float32})


def machine() -> Machine:
    """The thread pool and the kernels, made at first use.

    As many threads as torch has (torch.set_num_threads, OMP_NUM_THREADS), but no more than there
    are processors for; each stays on one of them if OSSIA_CPU_PIN is 1. The instruction set is the
    best the processor has, or OSSIA_CPU_ISA. Raises OssiaError for one that the
    processor lacks.
    """
    return _used[-1] if _used else _own()


@contextmanager
def using(machine: Machine) -> Iterator[None]:
    """That machine in the place of the process's own."""
    _used.append(machine)
    try:
        yield
    finally:
        _used.remove(machine)


_used: list[Machine] = []


def training_machine() -> Machine:
    """`machine` with as many threads as torch has now, and on torch's threads: training chooses
    between one and all, and takes turns with torch.
    """
    return _used[-1] if _used else _beside_torch(torch.get_num_threads())


@lru_cache(maxsize=1)
def _own() -> Machine:
    return _of(torch.get_num_threads())


@lru_cache(maxsize=4)
def _beside_torch(threads: int) -> Machine:
    machine = _of(threads)
    machine.share_threads()
    return machine


def _of(threads: int) -> Machine:
    threads = min(threads, usable())
    try:
        machine = Machine(threads, os.environ.get("OSSIA_CPU_ISA", ""))
    except ValueError as error:
        raise OssiaError(str(error)) from error
    if os.environ.get("OSSIA_CPU_PIN") == "1":
        machine.pin()
    return machine


def is_native(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all are on the CPU, of one supported type, and no gradient is needed."""
    # Called hundreds of times per token: a plain loop, and nothing slower than an attribute.
    dtype = x.dtype
    if dtype not in DTYPES or not x.is_cpu:
        return False
    for other in others:
        if other is not None and (other.dtype is not dtype or not other.is_cpu):
            return False
    return not wants_gradient(x, *others)


def wants_gradient(*tensors: Tensor | None) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
