"""What runs in the process that the code of a model gets: the process locks itself down, says so,
and becomes the code. Nothing here is used by the process that starts it.
"""

from __future__ import annotations

import json
import os
import sys

from ossia.errors import OssiaError
from ossia.tools.python.jail import landlock, limits, seccomp
from ossia.tools.python.jail.code import run


def main(status: int) -> None:
    """Read a job, as `ossia.tools.python.sandbox` writes it, from stdin. Write "ok" to the
    descriptor `status` once the process is locked down, or what stands in the way; then the code
    never runs.
    """
    try:
        job = json.load(sys.stdin.buffer)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        limits.become_nobody(job["user"], job["scratch"])
        limits.die_with(job["parent"])
        limits.apply(job["limits"])
        landlock.restrict(job["readable"], job["scratch"])
        seccomp.install()
    except (OSError, ValueError, OssiaError) as error:
        os.write(status, str(error).encode())
        os._exit(1)
    os.write(status, b"ok")
    os.close(status)
    sys.path[:1] = [job["scratch"]]  # in place of where this package was found
    sys.path += job["packages"]
    run(job["code"])
