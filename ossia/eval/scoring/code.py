"""Python that a reply holds, run against tests in the locked-down sandbox of `ossia.tools.python`.

The tests run after the reply's code in the same process, and print a secret when they are through,
so that code which ends the process early does not pass. A reply that searched the interpreter for
the secret could forge it; nothing else about the machine is within its reach.
"""

from __future__ import annotations

import re
import secrets

from ossia.tools.python import Limits, run

# Code that computes ends by its time of the processor, of which a busy machine gives it little.
LIMITS = Limits(seconds=60.0, cpu_seconds=10, memory=1 << 30)
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_MOST_CHARACTERS = 200_000


def source_of(reply: str, prompt_code: str = "") -> str:
    """The code of a reply: its fenced blocks of Python, or all of it if there are none.

    prompt_code: what the reply was asked to continue. It is put before code that does not define
    the same functions anew; its imports are kept in any case.
    """
    reply = reply[-_MOST_CHARACTERS:]
    blocks = [
        code for kind, code in _FENCE.findall(reply) if kind in ("", "python", "py", "python3")
    ]
    code = "\n\n".join(blocks) if blocks else reply
    names = re.findall(r"^(?:async )?def (\w+)|^class (\w+)", prompt_code, re.MULTILINE)
    defined = [a or b for a, b in names]
    if defined and not re.search(rf"^(?:async )?(?:def|class) {defined[-1]}\b", code, re.MULTILINE):
        return prompt_code + code
    imports = re.findall(r"^(?:import|from) .*", prompt_code, re.MULTILINE)
    return "\n".join([*imports, code])


def problem(reply: str, tests: str, prompt_code: str = "", limits: Limits = LIMITS) -> str | None:
    """Why a reply's code fails its tests; None if they pass. Raises OssiaError where code cannot be
    run safely.
    """
    secret = secrets.token_hex(16)
    program = f"{source_of(reply, prompt_code)}\n\n{tests}\n\nprint({secret!r})\n"
    ran = run(program, limits)
    if ran.end is not None:
        return ran.end
    if ran.exit_code == 0 and ran.output.endswith(f"{secret}\n"):
        return None
    last = ran.output.strip().rpartition("\n")[2]
    return last or f"it ended early, with exit code {ran.exit_code}"
