"""Checks whose time a pattern decides, in a process of their own that ends when its time is up.

A regular expression can take exponential time on text that a model writes, and Python cannot
interrupt it; nor would it let other threads run meanwhile.
"""

from __future__ import annotations

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
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", _BOOT, str(root)],
            input=json.dumps([check, pattern, text]).encode(),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the {check} took longer than {seconds:g} s"
    if ended.returncode != 0:
        last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return f"the {check} could not be checked: {last}"
    return json.loads(ended.stdout)


def main() -> None:
    """In the process: the check that stdin asks for."""
    check, pattern, text = json.loads(sys.stdin.buffer.read())
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
