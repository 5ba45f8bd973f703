"""Options that several commands share, and how they open a model: with a spinner, and the reasons
for what is chosen on stderr.
"""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.stopping import leaving_at_once
from ossia.cli.text import note
from ossia.errors import OssiaError
from ossia.options import IGNORE_UNKNOWN_KEYS, EngineOptions, LoadOptions

if TYPE_CHECKING:
    from rich.status import Status

    from ossia.api import LLM


def complete_model(incomplete: str) -> list[str]:
    """For the shell: presets, and folders, that begin so."""
    from ossia.families import PRESETS

    presets = [name for name in PRESETS if name.startswith(incomplete.lower())]
    paths = glob.glob(glob.escape(os.path.expanduser(incomplete)) + "*")
    return presets + sorted(path + "/" for path in paths if os.path.isdir(path))


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="PATH_OR_HUB_NAME",
        help="Checkpoint folder, or a name on the Hugging Face hub, also name@revision. "
        "[default: the model inside the package]",
        autocompletion=complete_model,
    ),
]
IgnoreUnknownOption = Annotated[
    bool, typer.Option("--ignore-unknown-keys", help=IGNORE_UNKNOWN_KEYS.help)
]


def given_text(argument: str | None, option: str | None) -> str | None:
    """The text given as an argument or by --prompt; - is all of stdin. None if neither is given."""
    if argument is not None and option is not None:
        raise OssiaError("the text is given twice: as an argument and by --prompt")
    text = argument if option is None else option
    if text == "-":
        text = sys.stdin.read().removesuffix("\n")  # the one that echo and files end with
    return text


def set_threads(threads: int | None) -> None:
    """As many for torch, and so for the native kernels; None leaves them as they are."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def open_llm(
    model: str | None,
    load: LoadOptions,
    engine: EngineOptions = EngineOptions(),
    quiet: bool = False,
) -> LLM:
    """Load a model. Meanwhile a spinner turns on a terminal, and what is chosen is logged, unless
    `quiet`.
    """
    with leaving_at_once(), ExitStack() as stack:
        status = None if quiet else stack.enter_context(loading(model))
        from ossia import checkpoint  # torch comes with it, a second or two
        from ossia.api import LLM

        checkpoint.check(load)
        if status is not None:
            status.stop()  # a download shows progress bars of its own
        folder = checkpoint.find(model)
        if status is not None:
            status.start()
        return LLM.load(folder, load, engine)


@contextmanager
def loading(model: str | None) -> Iterator[Status | None]:
    """Shows log records; on a terminal above a spinner, which is yielded."""
    logger = logging.getLogger("ossia")
    handler, status = _Notes(), None
    logger.addHandler(handler)
    try:
        if not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        with console.status("loading" if model is None else f"loading {model}") as status:
            handler.status = status
            yield status
    finally:
        logger.removeHandler(handler)


class _Notes(logging.Handler):
    """Log records as notes. A spinner stops meanwhile."""

    status: Status | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.status is not None:
            self.status.stop()
        note(record.getMessage())
        if self.status is not None:
            self.status.start()
