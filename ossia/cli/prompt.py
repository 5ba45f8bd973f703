"""The prompt of a chat on a terminal: line editing, history over sessions, completion."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from ossia.cli.text import note


class Prompt:
    """Reads lines. Alt-Enter begins a new line of the same turn, Tab completes `commands`."""

    def __init__(self, commands: Sequence[str]) -> None:
        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            key_bindings=keys,
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
        )

    @property
    def has_text(self) -> bool:
        """Whether something was typed when the last read ended."""
        return bool(self._session.default_buffer.text)

    def read(self) -> str:
        """A line. Raises KeyboardInterrupt at Ctrl-C, and EOFError at Ctrl-D on an empty line."""
        return self._session.prompt("> ")

    def read_on(self) -> str:
        """A further line of the same turn."""
        return self._session.prompt(". ")


def _history() -> History:
    path = _history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError as error:
        note(f"no history over sessions: {error}")
        return InMemoryHistory()
    return FileHistory(str(path))


def _history_path() -> Path:
    """In the user's state folder, as the XDG base directory specification has it."""
    state = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(state) if state else Path.home() / ".local" / "state") / "ossia" / "chat_history"
