"""What can happen to a step on a GPU: its memory is taken by others, or the device is lost."""

from __future__ import annotations

import torch

from ossia.errors import DeviceLost, OssiaError, brief
from ossia.system.memory import format_size, free_memory


def out_of_memory(device: torch.device) -> OssiaError:
    """The error of a request for which there is none."""
    free = format_size(free_memory(device))
    return OssiaError(
        f"the memory of {device} ran out while this was computed; {free} are free now: end other "
        "programs that use it, or lower --kv-memory or --max-batch"
    )


def lost(error: Exception, device: torch.device) -> DeviceLost | None:
    """The end of a CUDA device, which after some errors (an access outside of its memory, a failed
    assertion, a broken bus) answers every call with the same; None if it still computes.
    """
    if device.type != "cuda" or not isinstance(error, RuntimeError):
        return None
    if torch.cuda._is_in_bad_fork():  # a child has no CUDA, which is another matter
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as still:
        reason = brief(str(still).partition("\n")[0])
        return DeviceLost(
            f"{device} computes no more in this process: {reason}; start the program again"
        )
    return None
