"""The documentation of names in the running Python's standard library, and of nothing else."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import re
import sysconfig
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError

# Importing these is harmless: none opens a window, a browser or a socket, or prints.
MODULES = (
    "abc",
    "argparse",
    "array",
    "ast",
    "base64",
    "binascii",
    "bisect",
    "calendar",
    "cmath",
    "codecs",
    "collections",
    "collections.abc",
    "concurrent.futures",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "enum",
    "fnmatch",
    "fractions",
    "functools",
    "gc",
    "glob",
    "graphlib",
    "gzip",
    "hashlib",
    "heapq",
    "hmac",
    "html",
    "inspect",
    "io",
    "itertools",
    "json",
    "keyword",
    "linecache",
    "locale",
    "logging",
    "math",
    "mimetypes",
    "operator",
    "os",
    "os.path",
    "pathlib",
    "pickle",
    "platform",
    "pprint",
    "queue",
    "random",
    "re",
    "secrets",
    "shlex",
    "shutil",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "sys",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "timeit",
    "tokenize",
    "traceback",
    "types",
    "unicodedata",
    "urllib.parse",
    "uuid",
    "warnings",
    "weakref",
    "zipfile",
    "zlib",
)
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
_LONGEST = 300  # characters of a result


def documentation(name: str) -> str:
    """The signature of `name` and the first paragraph of its docstring, at most 300 characters.

    `name` is a built-in ("len", "str.upper"), a module of `MODULES`, or an attribute of one. Raises
    OssiaError for any other name, and for one without a docstring.
    """
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise OssiaError(f"{name!r} is not a Python name")
    found = find(name)
    if not (text := summary(found)):
        raise OssiaError(f"{name} has no documentation")
    text = f"{name}{_signature(found)}\n{text}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3].rstrip() + "..."


def summary(found: Any) -> str:
    """The first paragraph of a docstring in one line, without the signature that some begin with;
    empty without a docstring.
    """
    text = inspect.getdoc(found) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    is_call = r"[\w.]+\(.*\)( -+> .*)?"
    return next((p for p in paragraphs if p and not re.fullmatch(is_call, p)), "")


def find(name: str) -> Any:
    """The object with that name in the standard library. Raises OssiaError if there is none."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        if module in MODULES:
            return _within(_imported(module), parts[count:], name)
    return _within(builtins, parts, name)


def _imported(module: str) -> Any:
    """A module of the standard library, never one of the same name earlier on the path."""
    spec = importlib.util.find_spec(module)
    origin = spec.origin if spec is not None else None
    library = Path(sysconfig.get_path("stdlib")).resolve()
    if origin not in ("built-in", "frozen") and (
        origin is None or library not in Path(origin).resolve().parents
    ):
        raise OssiaError(f"{module} is not in the standard library of this Python")
    return importlib.import_module(module)


def _within(found: Any, parts: list[str], name: str) -> Any:
    for part in parts:
        if part.startswith("_") or (found := getattr(found, part, None)) is None:
            raise OssiaError(f"the standard library has no {name}")
    return found


def _signature(found: Any) -> str:
    try:
        signature = str(inspect.signature(found)) if callable(found) else ""
    except (TypeError, ValueError):
        return ""
    return "(...)" if " at 0x" in signature or len(signature) > 80 else signature
