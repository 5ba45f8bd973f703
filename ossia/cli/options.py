"""Options that several commands share, and how they open a model: with a spinner, and the reasons
for what is chosen on stderr.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.options import IGNORE_UNKNOWN_KEYS, EngineOptions, LoadOptions

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
IgnoreUnknownOption = Annotated[
    bool, typer.Option("--ignore-unknown-keys", help=IGNORE_UNKNOWN_KEYS.help)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        help="Threads of the CPU. [default: one per processor that this process may use]",
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", "-n", min=1, metavar="N", help="Maximum number of tokens to generate."
    ),
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
    int | None, typer.Option(metavar="N", help="Seed; the same seed gives the same tokens.")
]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="Stop at this string; may be repeated."),
]


def set_threads(threads: int | None) -> None:
    """As many for torch, and so for the native kernels; None leaves them as they are."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def open_llm(model: str | None, load: LoadOptions, engine: EngineOptions = EngineOptions()) -> LLM:
    """Load a model, a spinner turning on a terminal meanwhile."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    handler = _ConsoleHandler(console)
    logger = logging.getLogger("ossia")
    logger.addHandler(handler)
    try:
        with console.status("loading" if model is None else f"loading {model}") as status:
            from ossia import checkpoint  # torch comes with it, a second or two
            from ossia.api import LLM

            status.stop()  # a download shows progress bars of its own
            folder = checkpoint.find(model)
            status.start()
            return LLM.load(folder, load, engine)
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
