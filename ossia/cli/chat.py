"""`ossia chat`: a conversation, on a terminal with line editing and drawn Markdown, in a pipe one
line a turn and plain text.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.fields import derived
from ossia.cli.options import (
    MaxTokensOption,
    MinPOption,
    ModelOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    note,
    open_llm,
)
from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions

if TYPE_CHECKING:
    from rich.console import Console

    from ossia.api import Sampling, Stream
    from ossia.cli.conversation import Conversation
    from ossia.cli.reply_view import ReplyView


@derived
def chat(
    *,
    model: ModelOption = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="Instructions before the conversation."),
    ] = None,
    reasoning_effort: Annotated[
        str | None,
        typer.Option(
            "--reasoning-effort",
            metavar="LEVEL",
            help="How long gpt-oss thinks: low, medium or high.",
        ),
    ] = None,
    thinking: Annotated[
        bool, typer.Option("--thinking/--no-thinking", help="Whether Qwen3 thinks first.")
    ] = True,
    tools: Annotated[
        bool | None,
        typer.Option(
            "--tools/--no-tools",
            help="Let the model call `calculate` and `documentation`, which run locally and change "
            "nothing. [default: for the model inside the package]",
            show_default=False,
        ),
    ] = None,
    hide_reasoning: Annotated[
        bool | None,
        typer.Option(
            "--hide-reasoning/--show-reasoning",
            help="The model's reasoning. [default: dim on a terminal, hidden in a pipe]",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FILE",
            help="Keep the conversation in this JSON file, after each reply.",
        ),
    ] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    load: LoadOptions,
    engine: EngineOptions,
) -> None:
    """Talk with a model.

    Ctrl-C stops a reply, Ctrl-D ends the program, /help lists the commands. In a pipe each line of
    stdin is a turn and the output is plain text.
    """
    from ossia.cli.conversation import Conversation, check_writable
    from ossia.cli.reply_view import PlainView, TerminalView, terminal_console
    from ossia.text.chat import read_effort
    from ossia.tools import BUILT_IN

    effort = read_effort(reasoning_effort)  # before the model is loaded
    if save is not None:
        check_writable(save)
    sampling: Sampling = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "stop": stop,
    }
    llm = open_llm(model, load, engine)
    from ossia.checkpoint import is_packaged  # torch comes with it

    packaged = model is None or is_packaged(model)
    conversation = Conversation(
        llm,
        sampling,
        system=system,
        thinking=thinking,
        tools=BUILT_IN if tools or (tools is None and packaged) else (),
    )
    if effort is not None:
        conversation.set_effort(effort)
    console = terminal_console()
    if console is None:
        hide = hide_reasoning is not False
        _piped(conversation, lambda: PlainView(show_reasoning=not hide), save)
    else:
        hide = hide_reasoning is True
        _interactive(conversation, lambda: TerminalView(console, hide), console, save)


def _piped(
    conversation: Conversation, new_view: Callable[[], ReplyView], save: Path | None
) -> None:
    """Every line of stdin is a turn; the first error ends the program."""
    for line in sys.stdin:
        _take_turn(conversation, line.strip(), new_view, save)
        if conversation.ended:
            return


def _interactive(
    conversation: Conversation,
    new_view: Callable[[], ReplyView],
    console: Console,
    save: Path | None,
) -> None:
    """Read turns from a person; after an error the conversation continues."""
    read = _prompt(list(conversation.commands))
    note(f"{conversation.title}; /help lists the commands")
    while not conversation.ended:
        try:
            line = read().strip()
        except KeyboardInterrupt:  # at the prompt it drops the line
            continue
        except EOFError:
            return
        try:
            _take_turn(conversation, line, new_view, save, interruptible=True)
        except OssiaError as error:
            console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)


def _take_turn(
    conversation: Conversation,
    line: str,
    new_view: Callable[[], ReplyView],
    save: Path | None,
    interruptible: bool = False,
) -> None:
    if not line:
        return
    if conversation.is_command(line):
        note(conversation.command(line))
        return
    if conversation.remark:
        note(conversation.remark)
    stream: Stream | None = conversation.ask(line)
    while stream is not None:
        _show_reply(conversation, stream, new_view(), interruptible)
        stream = conversation.go_on()
    if save is not None:
        conversation.save(save)


def _show_reply(
    conversation: Conversation, stream: Stream, view: ReplyView, interruptible: bool
) -> None:
    """One reply as it comes, then what the tools that it calls return."""
    try:
        with ExitStack() as stack:
            stack.callback(view.close)
            stack.enter_context(stream)
            if interruptible:
                stack.enter_context(_interrupts(stream))
                stack.enter_context(_no_echo())
            for event in stream:
                conversation.hear(event)
                view.show(event)
            for result in conversation.run_tools():
                view.show_result(result)
    except KeyboardInterrupt:
        if not interruptible:
            raise
    finally:
        remark = conversation.reply_ended()
    if remark:
        note(remark)


@contextmanager
def _interrupts(stream: Stream) -> Iterator[None]:
    """Ctrl-C ends the reply before its next token; a second one does not wait for that."""

    def interrupt(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stream.interrupt()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _no_echo() -> Iterator[None]:
    """What is typed during a reply waits for the next prompt. Echoed it would move the cursor, and
    the frame drawn last would not be found again.
    """
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    quiet = list(before)
    quiet[3] &= ~termios.ECHO  # the local modes
    termios.tcsetattr(terminal, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _prompt(commands: list[str]) -> Callable[[], str]:
    """A function that reads a turn: line editing, history over sessions, Alt-Enter for a new line,
    Tab for commands.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    path = _history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        history = FileHistory(str(path))
    except OSError as error:
        note(f"no history over sessions: {error}")
        history = InMemoryHistory()
    session: PromptSession[str] = PromptSession(
        history=history,
        key_bindings=keys,
        completer=WordCompleter(commands, sentence=True),
        complete_while_typing=False,
    )
    return lambda: session.prompt("> ")


def _history_path() -> Path:
    """In the user's state folder, as the XDG base directory specification has it."""
    state = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(state) if state else Path.home() / ".local" / "state") / "ossia" / "chat_history"
