"""The device that a run trains on: the CPU, or one GPU for each process."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor

from ossia.errors import OssiaError
from ossia.system import gpu

CPU = torch.device("cpu")


def choose(name: str) -> tuple[torch.device, str | None]:
    """The device that a name means, and a line on a GPU that is left unused, if there is one.

    name: cpu, cuda, cuda:N, or auto, which is a GPU on which training's kernels run, and else the
    CPU. Under torchrun each process takes a GPU of its own. Raises OssiaError for any other name
    and for a GPU that cannot be used.
    """
    kind, colon, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and index.isdigit())):
        raise OssiaError(f"--device {name}: training runs on cpu, cuda, cuda:N or auto")
    if kind == "cpu":
        return CPU, None
    processes = processes_here()
    if index and processes > 1:
        raise OssiaError(
            f"--device {name} is one GPU, and torchrun started {processes} processes here: "
            "--device cuda gives each its own"
        )
    device = torch.device("cuda", int(index or os.environ.get("LOCAL_RANK", "0")))
    lacking = _lacking(device, processes)
    if lacking is None:
        torch.cuda.set_device(device)
        return device, None
    if kind == "auto":
        problem = lacking if gpu.available() else gpu.problem()
        return CPU, problem and f"training on the CPU: {problem}"
    raise OssiaError(f"--device {name} cannot be used: {lacking}; --device cpu trains without it")


def processes_here() -> int:
    """Processes that torchrun started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _lacking(device: torch.device, processes: int) -> str | None:
    """Why training cannot use a GPU; None if it can."""
    count = torch.cuda.device_count()
    if processes > max(1, count):
        return f"{processes} processes need a GPU each, and there are {count}"
    if processes > 1 and not dist.is_nccl_available():
        return "this PyTorch has no NCCL, which several GPUs need"
    if count and device.index >= count:
        return f"GPUs are numbered from 0 to {count - 1} here"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        return gpu.problem() or gpu.reason(error).rstrip(".")
    try:
        from ossia.ops import triton
    except ImportError as error:
        return f"the package triton cannot be imported ({error}): pip install 'ossia[gpu]'"
    return triton.unusable(device)


def describe(device: torch.device) -> dict[str, str]:
    """The part of a record that names the device."""
    if device.type != "cuda":
        return {"device": device.type}
    return {"device": device.type, "card": torch.cuda.get_device_name(device)}


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU it goes from pinned memory, and the host does not wait."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all its work, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
