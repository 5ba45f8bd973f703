"""`ossia chat`: a conversation, on a terminal with line editing and drawn Markdown, in a pipe one
line a turn and plain text; or one turn that is given as an argument.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.fields import derived
from ossia.cli.hints import refuse_a_model_as_text
from ossia.cli.options import ModelOption, given_text, open_llm
from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions, Option, Options, SamplingOptions

if TYPE_CHECKING:
    from ossia.cli.reply_view import ReplyView


@dataclass(frozen=True)
class ChatOptions(Options):
    """What a chat is like, whatever model it is with."""

    prompt: Annotated[str | None, Option("The same as MESSAGE.", names=("-p",))] = None
    system: Annotated[
        str | None, Option("Instructions before the conversation.", names=("-s",), default="none")
    ] = None
    reasoning_effort: Annotated[
        str | None,
        Option(
            "How long gpt-oss thinks: low, medium or high.",
            metavar="LEVEL",
            names=("--effort",),
            default="medium",
        ),
    ] = None
    thinking: Annotated[bool, Option("Whether Qwen3 thinks first.")] = True
    tools: Annotated[
        bool | None,
        Option(
            "Let the model call `calculate` and `documentation`, which run locally and change "
            "nothing.",
            default="for the model inside the package",
        ),
    ] = None
    hide_reasoning: Annotated[
        bool | None,
        Option(
            "The model's reasoning.",
            off="--show-reasoning",
            default="dim on a terminal, hidden in a pipe",
        ),
    ] = None
    save: Annotated[
        Path | None,
        Option(
            "Keep the conversation in this JSON file, after each reply.",
            metavar="FILE",
            default="not kept",
        ),
    ] = None
    quiet: Annotated[bool, Option("Print only replies, and what goes wrong.", names=("-q",))] = (
        False
    )


@derived
def chat(
    *,
    message: Annotated[
        str | None,
        typer.Argument(
            metavar="MESSAGE",
            help="Answer this and end; - reads one message of any length from a pipe.",
            show_default=False,
        ),
    ] = None,
    options: ChatOptions,
    model: ModelOption = None,
    sampling: SamplingOptions,
    load: LoadOptions,
    engine: EngineOptions,
) -> None:
    """Talk with a model.

    Ctrl-C stops a reply, Ctrl-D ends the program, /help lists the commands. In a pipe each line of
    stdin is a turn, and the output is plain text. With MESSAGE, stdin is not read.
    """
    from ossia.cli.conversation import Conversation
    from ossia.cli.session import Session
    from ossia.system.files import check_output
    from ossia.text.chat import read_effort
    from ossia.tools import BUILT_IN

    text = given_text(message, options.prompt)  # all that can be wrong, before the model is loaded
    if text is not None and not text.strip():
        raise OssiaError("the message is empty")
    if text is not None and model is None:
        refuse_a_model_as_text(text, "ossia chat")
    effort = read_effort(options.reasoning_effort, "--reasoning-effort")
    if options.save is not None:
        check_output(options.save)
    llm = open_llm(model, load, engine, options.quiet)
    from ossia.checkpoint import is_packaged  # torch comes with it

    packaged = model is None or is_packaged(model)
    use_tools = packaged if options.tools is None else options.tools
    conversation = Conversation(
        llm,
        sampling,
        system=options.system,
        thinking=options.thinking,
        tools=BUILT_IN if use_tools else (),
    )
    if effort is not None:
        conversation.set_effort(effort)
    drawn = sys.stdout.isatty() and (text is not None or sys.stdin.isatty())
    view = _view(options.hide_reasoning, drawn)
    session = Session(conversation, view, options.save, interruptible=drawn and text is None)
    if text is not None:
        session.ask(text)
    elif drawn:
        session.read_terminal(quiet=options.quiet)
    else:
        session.read_pipe()


def _view(hide_reasoning: bool | None, drawn: bool) -> Callable[[], ReplyView]:
    """Makes the view of each reply."""
    if not drawn:
        from ossia.cli.reply_view import PlainView

        return lambda: PlainView(show_reasoning=hide_reasoning is False)
    from rich.console import Console

    from ossia.cli.terminal_view import TerminalView

    console = Console(highlight=False)
    return lambda: TerminalView(console, hide_reasoning is True)
