"""Errors of NVIDIA GPUs: why PyTorch cannot use one, and what to do about it, in a line."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import torch

from ossia.errors import brief
from ossia.system.control_groups import read

_UPDATE = (
    "update the driver, or install a PyTorch for an older CUDA (https://pytorch.org/get-started)"
)
# By the number of a CUDA error (cudaError_t), what it means and what to do.
_ERRORS = {
    2: "others have taken all of its memory",
    35: f"its driver is too old: {_UPDATE}",
    46: "another program has it for itself: end that, or let several use it with nvidia-smi -c 0",
    100: "no GPU is visible to CUDA: look at nvidia-smi and CUDA_VISIBLE_DEVICES",
    802: "the fabric between the GPUs is not ready: start nvidia-fabricmanager",
    803: "its driver and the driver's libraries are of different versions, as after an update: "
    "restart the machine, or the container",
    804: f"its driver is too old, and this GPU takes no newer one's libraries: {_UPDATE}, or take "
    "cuda-compat out of LD_LIBRARY_PATH",
    999: "its driver is in a bad state: load the module nvidia_uvm again, or restart the machine",
}
# What torch says where it gives no number.
_WORDS = {
    "driver on your system is too old": 35,
    "no CUDA-capable device": 100,
    "out of memory": 2,
    "busy or unavailable": 46,
    "unsupported display driver": 803,
    "forward compatibility was attempted": 804,
    "system not yet initialized": 802,
}


# Errors of what allocates past torch.
_FULL = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
    "DefaultCPUAllocator: can't allocate memory",
)


def ran_out(error: Exception) -> bool:
    """Whether the memory of a device, or of the host, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def available() -> bool:
    """Whether torch can use a CUDA device, without its warnings about one that it cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def problem(root: Path = Path("/")) -> str | None:
    """Why torch cannot use the NVIDIA GPU of this machine; None if it can, or there is none.

    root: the folder of proc and dev, which differs in tests.
    """
    driver = read(root / "proc/driver/nvidia/version")
    if not driver and not any(root.glob("dev/nvidia[0-9]*")):
        return None
    if torch.version.cuda is None:
        return (
            f"the NVIDIA GPU cannot be used: this PyTorch ({torch.__version__}) is built without "
            "CUDA; install another (https://pytorch.org/get-started)"
        )
    if available():
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        why = reason(error)
    else:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = _ERRORS[100] if hidden is None else f"CUDA_VISIBLE_DEVICES={hidden} hides it"
    version = re.search(r"Module(?: for \S+)?\s+(\d[\d.]*)", driver)
    named = f"driver {version[1]}, " if version else ""
    return f"the NVIDIA GPU ({named}PyTorch for CUDA {torch.version.cuda}) cannot be used: {why}"


def reason(error: BaseException) -> str:
    """The reason of an error that torch raised when it was to use a GPU."""
    text = str(error)
    number = re.search(r"[Ee]rror (\d+):", text)
    code = int(number[1]) if number else None
    if code not in _ERRORS:
        code = next((known for words, known in _WORDS.items() if words in text), None)
    if code is None:
        return brief(text.partition("\n")[0] or error)
    return f"{_ERRORS[code]} (CUDA error {code})" if number else _ERRORS[code]
