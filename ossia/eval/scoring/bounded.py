"""Checks whose time a pattern decides, in a process of their own that ends when its time is up.

A regular expression can take exponential time on text that a model writes, and Python cannot
interrupt it; nor would it let other threads run meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 5.0
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from ossia.eval.scoring.bounded import main; main()"
)


def run(check: str, pattern: Any, text: str, seconds: float = SECONDS) -> str | None:
    """What is wrong with a text; None if it passes. check: "regex" (`pattern` is searched in it) or
    "json-schema" (`pattern` is a schema, and the text JSON).
    """
    root = Path(__file__).parents[3]  # where this ossia is
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOT, str(root)],
        bufsize=0,  # `communicate` would not see what a buffer holds
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # of one that says why it could not start
            process.stdin.write(json.dumps([check, pattern, text]).encode() + b"\n")
        process.stdout.readline()  # it has started, which may take long on a busy machine
        try:
            found, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"the {check} took longer than {seconds:g} s"
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        return f"the {check} could not be checked: {last}"
    return json.loads(found)


def main() -> None:
    """In the process: the check that a line of stdin asks for. An empty line says that it begins
    now.
    """
    check, pattern, text = json.loads(sys.stdin.buffer.readline())
    if check != "regex":
        import jsonschema.validators  # noqa: F401 - which takes most of the time to start
    print(flush=True)
    problem = _search(pattern, text) if check == "regex" else _validate(pattern, text)
    sys.stdout.write(json.dumps(problem))


def _search(pattern: str, text: str) -> str | None:
    return None if re.search(pattern, text) else "the pattern is not found"


def _validate(schema: Any, text: str) -> str | None:
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    # An empty registry, so that no reference is fetched.
    validator = validator_for(schema)(schema, registry=Registry())
    error = next(iter(validator.iter_errors(value)), None)
    return None if error is None else f"{error.json_path}: {error.message}"
