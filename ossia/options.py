"""User settings: frozen dataclasses whose fields state their help, bounds and names once.

`ossia.cli.fields` derives the commands' options from them. Callers of the library create the same
dataclasses, so both get the same checks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from os import PathLike
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from ossia.errors import OssiaError
from ossia.system.memory import parse_size


@dataclass(frozen=True)
class Option:
    """The metadata of a field: `steps: Annotated[int, Option("Batches to train on.")] = 2000`.

    A field that overrides an inherited one need not repeat it: `steps: int = 500`.
    """

    help: str
    metavar: str | None = None  # the value's name in help texts; None is N, X, TEXT or PATH by type
    names: tuple[str, ...] = ()  # more spellings, such as -m or --lr
    off: str | None = None  # the flag that says no, such as --full; None is --no-NAME
    default: str | None = None  # what None, 0 or an empty default stands for, such as "today"
    shorthands: Mapping[str, str] = field(default_factory=dict)  # other names of an enum's members
    minimum: float | None = None
    above: float | None = None  # a bound that the value must not reach, as `below`
    maximum: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str | None:
        """The problem with a number, as the end of a sentence; None if there is none."""
        bounds = {
            "at least": (self.minimum, lambda bound: value >= bound),
            "above": (self.above, lambda bound: value > bound),
            "at most": (self.maximum, lambda bound: value <= bound),
            "below": (self.below, lambda bound: value < bound),
        }
        given = {word: pair for word, pair in bounds.items() if pair[0] is not None}
        if math.isfinite(value) and all(holds(bound) for bound, holds in given.values()):
            return None
        wanted = " and ".join(f"{word} {bound:.10g}" for word, (bound, _) in given.items())
        return f"must be {wanted or 'finite'}, not {value}"


@dataclass(frozen=True)
class Options:
    """The base of all dataclasses of options. Numbers are within their bounds, and a field whose
    type is an enum holds a member of it, though its value as a string is accepted too.
    """

    def __post_init__(self) -> None:
        """Raise OssiaError for a value that an option does not take."""
        for setting in settings(type(self)):
            value = getattr(self, setting.name)
            if setting.several:
                _check_several(setting, value)
            elif setting.type in _KINDS and not (value is None and setting.optional):
                _check_kind(setting, value)
            if issubclass(setting.type, StrEnum) and not (value is None and setting.optional):
                if isinstance(value, str):
                    value = setting.option.shorthands.get(value, value)
                if value not in list(setting.type):
                    choices = " or ".join(setting.type)
                    raise OssiaError(f"{flag(setting.name)} must be {choices}, not {value}")
                object.__setattr__(self, setting.name, setting.type(value))
            elif isinstance(value, int | float) and (problem := setting.option.problem(value)):
                raise OssiaError(f"{flag(setting.name)} {problem}")

    def refuse_changes(self, asked: Mapping[str, Any]) -> None:
        """Raise OssiaError if one of the values in `asked` differs from this object's, which were
        fixed when a run began.
        """
        for name, value in asked.items():
            began = getattr(self, name)
            if value != began:
                raise OssiaError(
                    f"{flag(name)} {value}: the run began with {began} and keeps it; "
                    f"leave {flag(name)} out, or start a new run"
                )


# The checked types: the accepted types of a value, and their name in messages.
_KINDS = {int: (int, "a whole number"), float: (int | float, "a number"), bool: (bool, "a bool")}


def _check_kind(setting: Setting, value: object) -> None:
    kind, words = _KINDS[setting.type]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise OssiaError(f"{flag(setting.name)} must be {words}, not {value!r}")


def _check_several(setting: Setting, values: object) -> None:
    if not isinstance(values, tuple) or not all(isinstance(v, setting.type) for v in values):
        raise OssiaError(f"{flag(setting.name)} must be a tuple of texts, not {values!r}")


@dataclass(frozen=True)
class Setting:
    """A field of a dataclass that carries an `Option`."""

    name: str
    type: type  # without None; str if it may be of several types; the elements' type of a tuple
    optional: bool  # whether it may be None
    several: bool  # whether it is a tuple, whose option may be repeated
    default: Any  # dataclasses.MISSING if there is none
    option: Option

    def read(self, text: str) -> Any:
        """The number or text that a user typed. Raises OssiaError if it is no number."""
        if self.type not in (int, float):
            return (text,) if self.several else text
        try:
            return self.type(text)
        except ValueError as error:
            raise OssiaError(
                f"{flag(self.name)} must be {_KINDS[self.type][1]}, not {text}"
            ) from error


@cache
def settings(kind: type[Options]) -> tuple[Setting, ...]:
    """The fields of a dataclass that carry an `Option`, in the order in which help lists them:
    those that the class introduces, then those that its base introduces.
    """
    introduced: dict[str, type] = {}
    described: dict[str, Option] = {}
    for base in reversed(kind.__mro__):
        hints = get_type_hints(base, include_extras=True)
        for name in inspect.get_annotations(base):
            introduced.setdefault(name, base)
            for data in getattr(hints[name], "__metadata__", ()):
                if isinstance(data, Option):
                    described[name] = data
    types, defaults = get_type_hints(kind), {field.name: field.default for field in fields(kind)}
    return tuple(
        Setting(name, *_plain(types[name]), defaults[name], described[name])
        for base in kind.__mro__
        for name in inspect.get_annotations(base)
        if introduced[name] is base and name in described
    )


def _plain(hint: Any) -> tuple[type, bool, bool]:
    """The type that a command-line string is parsed as, whether None is allowed, and whether the
    field is a tuple of them.
    """
    if get_origin(hint) is tuple:
        return get_args(hint)[0], False, True
    if isinstance(hint, type):
        return hint, False, False
    members = get_args(hint)
    others = [member for member in members if member is not NoneType]
    return (others[0] if len(others) == 1 else str), NoneType in members, False


def flag(name: str) -> str:
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")


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


class KV(StrEnum):
    """Formats of keys and values that are never the default, because they change the numbers."""

    int8 = "int8"
    fp8 = "fp8"


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
            "it is about experts in host memory; all others are in the GPU's."
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
    ignore_unknown_keys: Annotated[bool, IGNORE_UNKNOWN_KEYS] = False

    def __post_init__(self) -> None:
        # torch's devices and dtypes are accepted by name, which does not import torch.
        object.__setattr__(self, "device", str(self.device))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        super().__post_init__()
        if self.expert_memory != "all":
            _check_size("expert_memory", self.expert_memory)


@dataclass(frozen=True)
class EngineOptions(Options):
    """How an engine batches requests and stores keys and values.

    kv_memory is a number of bytes, or a size such as "2GiB".
    """

    kv: Annotated[
        KV | None,
        Option(
            "Store keys and values in half the memory, with less precision. fp8 (e4m3) has less of "
            "it than int8 and takes less memory; it is for GPUs, and slow on a CPU.",
            default="as --dtype",
        ),
    ] = None
    kv_memory: Annotated[
        int | str | None,
        Option(
            "Memory for keys and values, such as 2GiB.",
            metavar="SIZE",
            default="half of what is free, a quarter on a GPU",
        ),
    ] = None
    max_batch: Annotated[
        int | None,
        Option(
            "Requests that run together; more wait.",
            minimum=1,
            maximum=1 << 16,
            default="16, or 64 on a GPU",
        ),
    ] = None
    prefill_chunk: Annotated[
        int | None,
        Option(
            "Prompt tokens read in one step. Smaller chunks make smoother streams and a slower "
            "start.",
            minimum=1,
            default="512; 2048 on a GPU and where experts are read from disk",
        ),
    ] = None
    page_size: Annotated[
        int,
        Option(
            "Positions in a page, the unit in which memory for keys and values is granted and "
            "shared.",
            minimum=1,
        ),
    ] = 16
    prefix_cache: Annotated[
        bool,
        Option(
            "Keep the keys and values of earlier texts, so that a prompt that begins like one of "
            "them is read only from where it departs from it."
        ),
    ] = True
    speculate: Annotated[
        str | None,
        Option(
            "Draft tokens and verify several in one step, which changes none of them: ngram drafts "
            "what followed the same words before; a folder or hub name is a smaller model of the "
            "same vocabulary.",
            metavar="ngram|MODEL",
            default="off",
        ),
    ] = None
    speculate_tokens: Annotated[
        int, Option("Most tokens to draft for a request in a step.", minimum=1, maximum=15)
    ] = 6
    max_queue: Annotated[
        int, Option("Unfinished requests, running and waiting; more are refused.", minimum=1)
    ] = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size("kv_memory", self.kv_memory)
        if isinstance(self.speculate, PathLike):
            object.__setattr__(self, "speculate", str(self.speculate))
        if self.speculate is not None and not (self.speculate and isinstance(self.speculate, str)):
            raise OssiaError(
                f"--speculate must be ngram or a model's folder or name, not {self.speculate!r}"
            )


_SAMPLING_DEFAULT = "the checkpoint's, else off"


@dataclass(frozen=True)
class SamplingOptions(Options):
    """How tokens are drawn. None leaves the choice to the checkpoint's generation_config.json."""

    max_tokens: Annotated[
        int | None,
        Option(
            "Maximum number of tokens to generate.",
            minimum=1,
            names=("-n",),
            default="up to the end of the context",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        Option(
            "0 takes the likeliest token.",
            minimum=0,
            names=("--temp",),
            default="the checkpoint's, else 1",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        Option(
            "Draw from the K likeliest tokens; 0 is all.",
            metavar="K",
            minimum=0,
            default=_SAMPLING_DEFAULT,
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Option(
            "Draw from the likeliest tokens whose probabilities sum to P.",
            metavar="P",
            above=0,
            maximum=1,
            default=_SAMPLING_DEFAULT,
        ),
    ] = None
    min_p: Annotated[
        float | None,
        Option(
            "Drop tokens that are less probable than P times the likeliest.",
            metavar="P",
            minimum=0,
            maximum=1,
            default=_SAMPLING_DEFAULT,
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Option(
            "Make tokens of the prompt and the reply less likely; 1 is off.",
            names=("--repeat-penalty",),
            minimum=0.01,
            maximum=100,
            default=_SAMPLING_DEFAULT,
        ),
    ] = None
    presence_penalty: Annotated[
        float | None,
        Option(
            "Subtract X from the logit of each token that stands in the reply.",
            minimum=-2,
            maximum=2,
            default="0",
        ),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        Option(
            "Subtract X from a token's logit for each time that it stands in the reply.",
            minimum=-2,
            maximum=2,
            default="0",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Option(
            "The same seed gives the same tokens.",
            minimum=-(2**63),
            below=2**63,
            default="a random one",
        ),
    ] = None
    stop: Annotated[
        tuple[str, ...],
        Option("End before this string; may be repeated.", metavar="TEXT", default="none"),
    ] = ()


def _check_size(name: str, value: object) -> None:
    """Raise OssiaError unless `value` is None, a positive number of bytes, or a size as text."""
    if isinstance(value, str):
        try:
            value = parse_size(value)
        except OssiaError as error:
            raise OssiaError(f"{flag(name)}: {error}") from error
    if value is not None and (not isinstance(value, int) or value < 1):
        raise OssiaError(f"{flag(name)} must be at least one byte, not {value!r}")


def split(options: Mapping[str, Any], *kinds: type[Options]) -> tuple[Any, ...]:
    """Keyword arguments as one value of each kind. Raises OssiaError for a name that none has."""
    known = [setting.name for kind in kinds for setting in settings(kind)]
    if unknown := sorted(options.keys() - set(known)):
        raise OssiaError(f"unknown option {', '.join(unknown)}; the options are {', '.join(known)}")
    return tuple(
        kind(**{s.name: options[s.name] for s in settings(kind) if s.name in options})
        for kind in kinds
    )
