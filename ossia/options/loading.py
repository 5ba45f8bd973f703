"""Options of what loads a model and computes with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from ossia.errors import OssiaError
from ossia.options.setting import Option, Options, check_size


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# What people call them, and their names.
PRECISIONS = {
    **dict.fromkeys(("fp32", "float"), Dtype.float32.value),
    "bf16": Dtype.bfloat16.value,
    **dict.fromkeys(("fp16", "half"), Dtype.float16.value),
}


class Load(StrEnum):
    map = "map"
    copy = "copy"


class Int8(StrEnum):
    """A format that is never the default, because it changes the numbers."""

    int8 = "int8"


# More crash where the system does not start as many, and more than processors help nobody.
MOST_THREADS = 1024


@dataclass(frozen=True)
class ThreadOptions(Options):
    """Threads of the whole process."""

    threads: Annotated[
        int | None,
        Option(
            "CPU threads to compute with.",
            minimum=1,
            maximum=MOST_THREADS,
            default="one per processor that this process may use",
        ),
    ] = None


@dataclass(frozen=True)
class TrainingMachineOptions(ThreadOptions):
    """What a run trains on."""

    device: Annotated[
        str,
        Option(
            "auto (a GPU that can be used, else the CPU), cpu, cuda or cuda:1. What continues, "
            "continues where it was.",
            metavar="NAME",
        ),
    ] = "auto"


IGNORE_UNKNOWN_KEYS = Option(
    "Load a model as if unknown keys of its config.json and unknown tensors were absent; the "
    "result is wrong if it depends on them."
)


@dataclass(frozen=True)
class KernelOptions(ThreadOptions):
    """What computes."""

    backend: Annotated[
        str,
        Option("Kernels to run on; auto takes the fastest and logs its choice.", metavar="NAME"),
    ] = "auto"


@dataclass(frozen=True)
class LoadOptions(KernelOptions):
    """How a checkpoint is loaded: `LLM`, `load_model` and each command that opens a model take
    these.

    dtype may also be a torch.dtype. expert_memory is a number of bytes, a size such as "12GiB", or
    "all".
    """

    dtype: Annotated[
        Dtype | None,
        Option(
            "Precision of the dense weights.", default="the checkpoint's", shorthands=PRECISIONS
        ),
    ] = None
    device: Annotated[
        str,
        Option(
            "auto, cpu, cuda, cuda:1, mps; auto takes a GPU that the model fits and is faster on.",
            metavar="NAME",
        ),
    ] = "auto"
    devices: Annotated[
        int, Option("GPUs, or processes on a CPU, that share the model.", minimum=1, maximum=64)
    ] = 1
    load: Annotated[
        Load,
        Option(
            "Leave the weights in the mapped files, or copy them into memory that stays. On a GPU "
            "this concerns only experts in host memory."
        ),
    ] = Load.map
    expert_memory: Annotated[
        int | str | None,
        Option(
            "Memory for experts, such as 12GiB. On a CPU, others in MXFP4 are read from disk when "
            "they are needed; on a GPU, other layers' experts are computed on the CPU. all keeps "
            "every one.",
            metavar="SIZE",
            default="all, or what is free if they do not fit",
        ),
    ] = None
    dense: Annotated[
        Int8 | None,
        Option(
            "Quantize the dense weights at load: faster, and nearly the same numbers.",
            default="not quantized",
        ),
    ] = None
    activations: Annotated[
        Int8 | None,
        Option(
            "Round the activations of prompts to int8 in products with MXFP4 experts and int8 "
            "matrices: prompts are read up to twice as fast, with nearly the same numbers. "
            "Decoding does not change. CPU only.",
            default="not rounded",
        ),
    ] = None
    ignore_unknown_keys: Annotated[bool, IGNORE_UNKNOWN_KEYS] = False

    def __post_init__(self) -> None:
        # torch's devices and dtypes are accepted by name, which does not import torch.
        object.__setattr__(self, "device", str(self.device))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        super().__post_init__()
        if self.activations is not None and self.devices > 1:
            raise OssiaError("--activations int8 is for one process: leave --devices out")
        if self.expert_memory != "all":
            check_size("expert_memory", self.expert_memory)
