"""A chat from its first line to its last: turns are read from a terminal, a pipe or the command
line, and replies are shown as they come.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ossia.cli.commands import Commands
from ossia.cli.conversation import Conversation
from ossia.cli.text import note, red, wrapped
from ossia.errors import OssiaError

if TYPE_CHECKING:
    from ossia.api import Stream
    from ossia.cli.reply_view import ReplyView

_BLOCK = '"""'
_LEAVE = ("exit", "quit", "bye")  # typed on a terminal as the whole line


@dataclass(frozen=True)
class Session:
    """A conversation and how it is shown.

    save: the file that is written after each reply, if any. interruptible: Ctrl-C ends the reply
    and not the program.
    """

    conversation: Conversation
    new_view: Callable[[], ReplyView]
    save: Path | None = None
    interruptible: bool = False

    def ask(self, turn: str) -> None:
        """One turn, with all replies to it. Raises OssiaError if the model cannot take it."""
        stream: Stream | None = self.conversation.ask(turn)
        while stream is not None:
            self._show_reply(stream)
            stream = self.conversation.go_on()
        if self.save is not None:
            self.conversation.save(self.save)

    def read_pipe(self) -> None:
        """Each line of stdin is a turn, and so is each block; the first error ends the program."""
        commands, lines = Commands(self.conversation), iter(sys.stdin)

        def next_line() -> str:
            try:
                return next(lines).rstrip("\n")
            except StopIteration:
                raise OssiaError(f"the block that began with {_BLOCK} is not closed") from None

        for line in lines:
            self._take(line.strip(), next_line, commands)
            if commands.ended:
                return

    def read_terminal(self, *, quiet: bool) -> None:
        """Turns from a person; after an error the conversation continues."""
        from ossia.cli.prompt import Prompt

        commands = Commands(self.conversation)
        prompt = Prompt(commands.names)
        if not quiet:
            note(f"{self.conversation.title}; /help lists the commands")
        while not commands.ended:
            line = ""
            try:
                line = prompt.read().strip()
                if line.lower() in _LEAVE:
                    return
                self._take(line, prompt.read_on, commands)
            except KeyboardInterrupt:  # at the prompt it drops what is typed
                if not line and not prompt.has_text:
                    note("Ctrl-D or /exit ends the chat")
            except EOFError:
                return
            except OssiaError as error:
                print(red(wrapped(f"error: {error}", sys.stderr), sys.stderr), file=sys.stderr)

    def _take(self, line: str, next_line: Callable[[], str], commands: Commands) -> None:
        """A command, or a turn; `next_line` reads the further lines of a block."""
        if line.startswith(_BLOCK):
            text = _block(line, next_line)
            if text.strip():
                self.ask(text)
        elif self.conversation.is_command(line):
            note(commands.run(line))
        elif line:
            self.ask(self.conversation.turn_of(line))

    def _show_reply(self, stream: Stream) -> None:
        """One reply as it comes, then what the tools that it calls return."""
        view = self.new_view()
        try:
            with ExitStack() as stack:
                stack.callback(view.close)
                stack.enter_context(stream)
                if self.interruptible:
                    stack.enter_context(interrupts(stream))
                if sys.stdin.isatty():
                    stack.enter_context(no_echo(sys.stdin.fileno()))
                for event in stream:
                    self.conversation.hear(event)
                    view.show(event)
                for result in self.conversation.run_tools():
                    view.show_result(result)
        except KeyboardInterrupt:
            if not self.interruptible:
                raise
        finally:
            remark = self.conversation.reply_ended()
        if remark:
            note(remark)


def _block(first: str, next_line: Callable[[], str]) -> str:
    """The text between two \"\"\", which may be in one line or in several."""
    text = first.removeprefix(_BLOCK)
    while not text.rstrip().endswith(_BLOCK):
        text += "\n" + next_line()
    return text.rstrip().removesuffix(_BLOCK).strip("\n")


@contextmanager
def interrupts(stream: Stream) -> Iterator[None]:
    """Ctrl-C ends the reply before its next token; a second one does not wait for that."""

    def interrupt(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stream.interrupt()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def no_echo(terminal: int) -> Iterator[None]:
    """What is typed meanwhile waits for the next prompt. Echoed it would move the cursor, and the
    frame drawn last would not be found again.
    """
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    before = termios.tcgetattr(terminal)
    quiet = list(before)
    quiet[3] &= ~termios.ECHO  # the local modes
    termios.tcsetattr(terminal, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
