"""The tools that a user names: python, browser=FOLDER, and the functions of `ossia chat`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ossia.errors import OssiaError
from ossia.tools import BUILT_IN
from ossia.tools.browser import Browser, Folder
from ossia.tools.functions import Functions
from ossia.tools.python import Python
from ossia.tools.toolset import Toolset

_BROWSER = "browser="
NAMES = ("python", f"{_BROWSER}FOLDER", *(tool.name for tool in BUILT_IN))


class ChosenTools:
    """What can be said of the tools before a model is loaded. Raises OssiaError for a name that is
    none, a folder that is not there, and python where code cannot be run safely.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._folder: Folder | None = None
        self._python: Python | None = None
        self._functions = [tool for tool in BUILT_IN if tool.name in names]
        for name in names:
            if name == "python":
                self._python = self._python or Python()
            elif name.startswith(_BROWSER):
                if self._folder is not None:
                    raise OssiaError(f"--tool {name}: there is one browser, of one folder")
                self._folder = Folder(name.removeprefix(_BROWSER))
            elif name not in [tool.name for tool in self._functions]:
                raise OssiaError(f"--tool {name}: must be one of {', '.join(NAMES)}")

    def toolsets(self, tokens: Callable[[str], int]) -> list[Toolset]:
        """The tools, for a model. tokens: counts those of a text."""
        sets: list[Toolset] = []
        if self._python is not None:
            sets.append(self._python)
        if self._folder is not None:
            sets.append(Browser(self._folder, tokens))
        if self._functions:
            sets.append(Functions(self._functions))
        return sets
