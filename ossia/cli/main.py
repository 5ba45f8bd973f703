"""The `ossia` command: a user's mistake is one line and exit code 2, an interrupt 130, a closed
pipe silence; never a traceback.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, cast

import typer

from ossia import __version__
from ossia.cli.ablate import ablate
from ossia.cli.bench import bench
from ossia.cli.chat import chat
from ossia.cli.compare import compare
from ossia.cli.convert import merge, quantize
from ossia.cli.eval import evaluate
from ossia.cli.finetune import finetune
from ossia.cli.generate import generate
from ossia.cli.help import Command, width
from ossia.cli.hints import Commands
from ossia.cli.inspect import inspect
from ossia.cli.serve import serve
from ossia.cli.start import INTERRUPTED
from ossia.cli.stopping import DEVICE_LOST, USER_ERROR
from ossia.cli.text import wrapped
from ossia.cli.train import train
from ossia.cli.xray import xray
from ossia.errors import DeviceLost, OssiaError

# The base of all errors in the use of options. typer carried click's at first and its own copy
# later, and exports only this one of them.
_UsageError = cast(
    type[Exception],
    next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"),
)

app = typer.Typer(
    name="ossia",
    cls=Commands,
    help="Run, train and understand the GPT line: GPT-2, Qwen3 and gpt-oss as one decoder.",
    epilog='Example: ossia chat "What is 48213 * 977?"',
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"ossia {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


for command, example in (
    (generate, 'ossia generate --model openai-community/gpt2 "Once upon a time"'),
    (chat, 'ossia chat "What is 48213 * 977?"'),
    (serve, "ossia serve path/to/gpt-oss-20b --port 8000"),
    (inspect, "ossia inspect gpt-oss-20b"),
    (compare, "ossia compare gpt2-xl gpt-oss-20b --html compare.html"),
    (xray, 'ossia xray "The quick brown fox jumps over the lazy dog."'),
    (train, "ossia train --steps 60 --batch-size 8 --out my-model"),
    (finetune, "ossia finetune --model Qwen/Qwen3-0.6B --data chats.jsonl --out my-chat"),
    (quantize, "ossia quantize my-bf16-model my-mxfp4-model --data chats.jsonl"),
    (merge, "ossia merge openai/gpt-oss-20b my-chat/adapter merged"),
    (ablate, "ossia ablate --data book.txt --rungs rope,swiglu --seeds 2 --out ladder"),
):
    app.command(epilog=f"Example: {example}", cls=Command)(command)
app.add_typer(evaluate, name="eval")
app.add_typer(bench, name="bench")


def main(arguments: Sequence[str] | None = None, commands: typer.Typer = app) -> int:
    """Run one command; its exit code."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started the program
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal's encoding lacks becomes "?"
            stream.reconfigure(errors="replace")
    logging.getLogger("ossia").setLevel(logging.INFO)
    # torch says so at import where NumPy is absent; ossia has no use for it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    try:
        code = commands(
            args=arguments,
            prog_name=commands.info.name,
            standalone_mode=False,
            terminal_width=width(),
        )
    except DeviceLost as error:
        return _fail(str(error), DEVICE_LOST)
    except OssiaError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else "cannot read the input or write: "
        return _fail(f"{where}{error.strerror or error}")
    except UnicodeDecodeError as error:
        return _fail(f"what was piped in is not {error.encoding}: {error.reason}")
    except _UsageError as error:
        # typer's own words for a choice of ours begin with the kind of error.
        return _fail(error.format_message().replace("Value error, ", ""))  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        from ossia.system.gpu import ran_out  # torch comes with it

        if not ran_out(error):
            raise
        return _fail(
            "the memory ran out; end other programs, or use a smaller model, batch or length"
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int = USER_ERROR) -> int:
    with contextlib.suppress(OSError):  # of a stderr that takes nothing
        print(wrapped(f"error: {' '.join(message.split())}", sys.stderr), file=sys.stderr)
    return code
