"""From the first import to the first token: what Ctrl-C ends, and what is imported at all."""

import os
import signal
import subprocess
import sys

import pytest

from ossia.cli.start import INTERRUPTED
from ossia.cli.stopping import leaving_at_once

# Interrupts itself when it begins to import a module, or when the weights are read.
PROGRAM = """
import os, signal, sys
moment = sys.argv.pop(1)

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            interrupt()

if moment == "weights":
    import ossia.checkpoint
    contents = sys.modules["ossia.checkpoint.contents"]
    read = contents.read_tensors
    contents.read_tensors = lambda folder: (interrupt(), read(folder))[1]
sys.meta_path.insert(0, Finder())
from ossia.cli.start import run
run()
"""


def start(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        # A shell that runs the tests in the background ignores interrupts, and so would we.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize("moment", ["typer", "torch", "torch.nn", "tokenizers", "weights"])
def test_ctrl_c_is_silent_at_any_moment(moment: str) -> None:
    done = start("-c", PROGRAM, moment, "chat", "-q", "Hi")
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_a_program_that_was_started_without_interrupts_ignores_them() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with leaving_at_once():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_answer_in_a_pipe_imports_nothing_that_only_a_terminal_or_training_needs() -> None:
    program = "import sys; from ossia.cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    done = start("-c", program, "chat", "-q", "What is 2 + 2?")
    imported = set(done.stdout.splitlines()[-1].split())
    unneeded = {
        "markdown_it",
        "ossia.train.loop",
        "prompt_toolkit",
        "pygments",
        "rich.console",
        "rich.markdown",
        "torch._dynamo",
        "torch._inductor",
        "torch.distributed.checkpoint",
        "transformers",
    }
    assert "torch" in imported
    assert unneeded & imported == set()
