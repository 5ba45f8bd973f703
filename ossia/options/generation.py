"""Options of the engine that generates, and of how tokens are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from typing import Annotated

from ossia.errors import OssiaError
from ossia.options.setting import Option, Options, check_size


class KV(StrEnum):
    """Formats of keys and values that are never the default, because they change the numbers."""

    int8 = "int8"
    fp8 = "fp8"


@dataclass(frozen=True)
class EngineOptions(Options):
    """How an engine batches requests and stores keys and values.

    kv_memory is a number of bytes, or a size such as "2GiB".
    """

    kv: Annotated[
        KV | None,
        Option(
            "Store keys and values in half the memory, with less precision. fp8 (e4m3) is smaller "
            "and less precise than int8; it is meant for GPUs and slow on a CPU.",
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
            "Draft tokens and verify several in one step; the output does not change. ngram drafts "
            "what followed the same words before; a folder or hub name is a smaller model of the "
            "same vocabulary.",
            metavar="ngram|MODEL",
            default="off",
        ),
    ] = None
    speculate_tokens: Annotated[
        int,
        Option("Maximum number of tokens to draft for a request in a step.", minimum=1, maximum=15),
    ] = 6
    max_queue: Annotated[
        int, Option("Unfinished requests, running and waiting; more are refused.", minimum=1)
    ] = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("kv_memory", self.kv_memory)
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
            "Subtract X from the logit of each token that occurs in the reply.",
            minimum=-2,
            maximum=2,
            default="0",
        ),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        Option(
            "Subtract X from a token's logit for each time that it occurs in the reply.",
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
