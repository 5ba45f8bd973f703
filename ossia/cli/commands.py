"""The slash commands of a chat: what a line such as `/set temperature 0` does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ossia.cli.conversation import Conversation
from ossia.cli.text import table
from ossia.errors import OssiaError
from ossia.options import SamplingOptions, Setting, flag, settings
from ossia.text import Effort
from ossia.tools import BUILT_IN

_DEFAULT = "default"  # as a value of /set

KEYS = (
    ("Enter", "send"),
    ("Alt-Enter", 'a new line, as is a line in a block between two lines of """'),
    ("Up, Ctrl-R", "earlier turns, and a search in them"),
    ("Tab", "complete a command"),
    ("Ctrl-C", "stop the reply, or drop what is typed"),
    ("Ctrl-D", "leave"),
)


@dataclass(frozen=True)
class Command:
    """A command's help, what it does with its argument, and the name of that in help texts. It
    returns the text to show.
    """

    help: str
    run: Callable[[str], str]
    argument: str = ""
    aliases: tuple[str, ...] = ()


class Commands:
    """The commands over a conversation. `ended`: whether the user has asked to leave."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.ended = False
        self.table = {
            "/help": Command("this list", self._help, aliases=("/?",)),
            "/clear": Command(
                "a new conversation; instructions and settings stay",
                self._clear,
                aliases=("/reset", "/new"),
            ),
            "/system": Command(
                "instructions for all turns; alone, shows them", self._system, "TEXT"
            ),
            "/effort": Command(
                "how long gpt-oss thinks; alone, shows it", self._effort, "|".join(Effort)
            ),
            "/set": Command(
                "a setting such as temperature; alone, shows all", self._set, "NAME VALUE"
            ),
            "/tools": Command("let the model call tools; alone, shows them", self._tools, "on|off"),
            "/save": Command("write the conversation as JSON", self._save, "FILE"),
            "/exit": Command("leave", self._exit, aliases=("/bye", "/quit")),
        }

    def run(self, line: str) -> str:
        """Run a line and return the text to show. Raises OssiaError if it cannot be done."""
        name, *rest = line.split(maxsplit=1)
        command = self._named(name.lower())
        if command is None:
            raise OssiaError(
                f"unknown command {name}; there are {', '.join(self.table)}. To send a line that "
                f"begins with a slash, type two: /{name}"
            )
        return command.run(rest[0].strip() if rest else "")

    @property
    def names(self) -> list[str]:
        """All names, for completion."""
        aliases = (name for command in self.table.values() for name in command.aliases)
        return [*self.table, *aliases]

    def _named(self, name: str) -> Command | None:
        for key, command in self.table.items():
            if name == key or name in command.aliases:
                return command
        return None

    def _help(self, _argument: str) -> str:
        commands = []
        for name, command in self.table.items():
            also = f" (also {', '.join(command.aliases)})" if command.aliases else ""
            commands.append((f"{name} {command.argument}".strip(), command.help + also))
        commands.append(("//TEXT", "send a line that begins with a slash"))
        return table([*commands, *KEYS], sys.stderr)

    def _clear(self, _argument: str) -> str:
        self._conversation.messages.clear()
        return "a new conversation"

    def _system(self, argument: str) -> str:
        if argument:
            self._conversation.system = argument
        return f"instructions: {self._conversation.system or 'none'}"

    def _effort(self, argument: str) -> str:
        effort = argument or self._conversation.effort or Effort.MEDIUM
        self._conversation.set_effort(effort)
        return f"reasoning effort: {self._conversation.effort}"

    def _tools(self, argument: str) -> str:
        match argument.lower():
            case "on":
                self._conversation.use_tools(BUILT_IN)
            case "off":
                self._conversation.use_tools(())
            case "":
                pass
            case _:
                raise OssiaError(f"/tools takes on or off, not {argument}")
        tools = self._conversation.tools or BUILT_IN
        state = "on" if self._conversation.tools else "off"
        return f"tools are {state}: {', '.join(tool.name for tool in tools)}"

    def _set(self, argument: str) -> str:
        name, _, text = argument.removeprefix("parameter ").strip().partition(" ")
        if not name:
            rows = [("thinking", self._value("thinking"))]
            rows += [(_name(s), self._value(s.name)) for s in settings(SamplingOptions)]
            return table(rows, sys.stderr)
        if name.lower() in ("system", "effort"):
            return self.run(f"/{name} {text}")
        return self._set_value(name, text.strip())

    def _set_value(self, name: str, text: str) -> str:
        conversation = self._conversation
        if name.lower() == "thinking":
            if text:
                conversation.thinking = _switch(text)
            return f"thinking: {self._value('thinking')}"
        setting = _setting(name)
        if text:
            value = setting.default if text == _DEFAULT else setting.read(text)
            conversation.sampling = replace(conversation.sampling, **{setting.name: value})
        return f"{_name(setting)}: {self._value(setting.name)}"

    def _value(self, name: str) -> str:
        """A setting's value in words."""
        if name == "thinking":
            return "on" if self._conversation.thinking else "off"
        value = getattr(self._conversation.sampling, name)
        if isinstance(value, tuple):
            value = ", ".join(map(repr, value)) or None
        return _DEFAULT if value is None else str(value)

    def _save(self, argument: str) -> str:
        if not argument:
            raise OssiaError("/save needs a file name: /save talk.json")
        path = Path(argument).expanduser()
        self._conversation.save(path)
        return f"saved to {path}"

    def _exit(self, _argument: str) -> str:
        self.ended = True
        return "bye"


def _setting(name: str) -> Setting:
    """The setting of that name, or of one of its option's names."""
    wanted = "--" + name.lower().lstrip("-").replace("_", "-")
    for setting in settings(SamplingOptions):
        if wanted in (flag(setting.name), *setting.option.names):
            return setting
    names = ", ".join(["thinking", *map(_name, settings(SamplingOptions))])
    raise OssiaError(f"/set {name}: there is no such setting; there are {names}")


def _name(setting: Setting) -> str:
    return flag(setting.name).removeprefix("--")


def _switch(text: str) -> bool:
    try:
        return {"on": True, "off": False}[text.lower()]
    except KeyError as error:
        raise OssiaError(f"must be on or off, not {text}") from error
