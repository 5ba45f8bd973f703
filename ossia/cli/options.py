"""Options that several commands share, and how they open a model: with a spinner, and the reasons
for what is chosen on stderr.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.options import Dtype, Int8, Load

if TYPE_CHECKING:
    from ossia.api import LLM


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="PATH_OR_HUB_NAME",
        help="Checkpoint folder, or a name on the Hugging Face hub. "
        "[default: the model inside the package]",
    ),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="Precision of the dense weights. [default: the checkpoint's]",
        case_sensitive=False,
    ),
]
DenseOption = Annotated[
    Int8 | None,
    typer.Option(
        "--dense",
        help="Quantize the dense weights as they are loaded: faster, and nearly the same numbers.",
        case_sensitive=False,
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.")
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Kernels to run on; auto takes the fastest and says which.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        help="Threads of the CPU. [default: one a processor that this process may use]",
    ),
]
LoadOption = Annotated[
    Load,
    typer.Option(
        "--load",
        help="Leave the weights in the mapped files, or copy them into memory that stays.",
        case_sensitive=False,
    ),
]
ExpertMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--expert-memory",
        metavar="SIZE",
        help="Memory for experts in MXFP4, such as 12GiB; the others are read from disk when they "
        "are needed. all maps every one. [default: all, or what is free if they do not fit]",
    ),
]
KVOption = Annotated[
    Int8 | None,
    typer.Option(
        "--kv",
        help="Store keys and values in half the memory, less exactly. [default: as --dtype]",
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option("--max-tokens", "-n", min=1, metavar="N", help="Most tokens to make."),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="0 takes the likeliest token. [default: the checkpoint's, else 1]"
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", metavar="K", help="Draw from the k likeliest tokens; 0 is all."),
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", help="Draw from the likeliest tokens that sum to p."),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        "--min-p", metavar="P", help="Drop tokens less likely than this share of the likeliest."
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(metavar="N", help="Draw the same tokens each time.")
]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End at this string; may be given several times."),
]


def set_threads(threads: int | None) -> None:
    """As many for torch, and so for the native kernels; None leaves them as they are."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def open_llm(
    model: str | None,
    dtype: Dtype | None,
    device: str,
    backend: str,
    expert_memory: str | None = None,
    dense: Int8 | None = None,
    kv: Int8 | None = None,
    threads: int | None = None,
    load: Load = Load.map,
) -> LLM:
    """Load a model, a spinner turning on a terminal meanwhile. Threads are set for the process."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    handler = _ConsoleHandler(console)
    logger = logging.getLogger("ossia")
    logger.addHandler(handler)
    try:
        with console.status("loading" if model is None else f"loading {model}") as status:
            from ossia import checkpoint  # torch comes with it, a second or two
            from ossia.api import LLM, packaged_model

            status.stop()  # a download shows progress bars of its own
            folder = packaged_model() if model is None else checkpoint.find(model)
            status.start()
            set_threads(threads)
            return LLM(
                folder,
                dtype=None if dtype is None else dtype.value,
                device=device,
                backend=backend,
                load=load.value,
                expert_memory=expert_memory,
                dense=None if dense is None else dense.value,
                kv=None if kv is None else kv.value,
            )
    finally:
        logger.removeHandler(handler)


class _ConsoleHandler(logging.Handler):
    """Log records as dim lines above a spinner."""

    def __init__(self, console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        self._console.print(Text(record.getMessage(), style="dim"), soft_wrap=True)


def note(message: str) -> None:
    """A remark beside the output: on stderr, dim on a terminal."""
    from ossia.cli.terminal import dim

    print(dim(message, sys.stderr), file=sys.stderr, flush=True)
