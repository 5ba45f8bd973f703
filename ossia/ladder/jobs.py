"""Several runs of a ladder at once on one device, each in a process of its own.

One small model leaves a GPU idle while its host prepares the next launch, and a CPU's cores while
they wait for each other. In processes a run computes exactly what it computes alone, and one that
dies takes no other with it. The kernels of a rung are compiled by its first run; those with other
seeds find them in the caches on disk that PyTorch and Triton keep.

A process reads from its input where to work, then one run at a time; it writes steps and outcomes
to its output. It ends with its input, so with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from ossia.errors import OssiaError, brief
from ossia.ladder.run import Ablation, Planned, is_packed
from ossia.ladder.rungs import Rung
from ossia.system import gpu
from ossia.system.claims import claim
from ossia.system.processors import usable
from ossia.train import budget, device
from ossia.train.loop import StepReport

_PROGRAM = "from ossia.ladder.jobs import work; work()"
_MOST = 4  # runs at once unless more are asked for: enough to fill each other's gaps
_CONTEXT = 1 << 30  # bytes of a GPU that each process takes for CUDA and its libraries
_PATIENCE = 0.2  # seconds between two looks at whether to stop


def fitting(ablation: Ablation) -> int:
    """How many runs the device has room for at once, by an estimate; one on a CPU."""
    if ablation.device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(ablation.device)
    plan = ablation.plan
    largest = max(
        budget.full(config, plan.settings(packed=is_packed(config), seed=0), ablation.device).total
        for _, config in ablation.rungs
    )
    return max(1, min(_MOST, usable(), free // (largest + _CONTEXT)))


def train(
    ablation: Ablation,
    jobs: int,
    report: Callable[[Rung, int, StepReport], None] = lambda *_: None,
    lost: Callable[[Planned, str], None] = lambda *_: None,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """As `Ablation.train`, with up to `jobs` runs at once.

    A run that fails leaves the others alone. One that runs out of memory, or that the system kills
    for it, continues later, with one process less at work. `lost` gets a line about either.

    Raises OssiaError, at the end, if runs failed.
    """
    if not ablation.unfinished:
        return True
    ablation.refuse_other_sums()
    runs = ablation.out / "runs"
    claimed = claim(runs)
    crew = _Crew(ablation, jobs, report, lost)
    try:
        while crew.employ():
            crew.hear()
            claimed.check(runs)
            if stopped():
                crew.stop()
    finally:
        crew.dismiss()
    if crew.failed:
        several = len(crew.failed) > 1
        raise OssiaError(
            f"{len(crew.failed)} of {len(ablation.runs)} runs failed ({'; '.join(crew.failed)}): "
            f"see above; the same command tries {'them' if several else 'it'} again"
        )
    return not ablation.unfinished


class Waiting:
    """The runs that are still to be started.

    compiles: the first run of a rung compiles its kernels, and none with another seed starts before
    it has made a step.
    """

    def __init__(self, runs: Iterable[Planned], *, compiles: bool) -> None:
        self._runs = deque(runs)
        self._compiles = compiles
        self._compiled: set[str] = set()
        self._compiling: set[str] = set()

    def take(self) -> Planned | None:
        """The next run; None if none may start now."""
        for run in self._runs:
            name = run.rung.name
            if not self._compiles or name in self._compiled:
                break
            if name not in self._compiling:
                self._compiling.add(name)
                break
        else:
            return None
        self._runs.remove(run)
        return run

    def made_a_step(self, run: Planned) -> None:
        self._compiled.add(run.rung.name)

    def ended(self, run: Planned) -> None:
        """The run was stopped or has failed, perhaps before its first step."""
        self._compiling.discard(run.rung.name)

    def put_back(self, run: Planned) -> None:
        """The run must be started again."""
        self._runs.appendleft(run)

    def clear(self) -> None:
        self._runs.clear()


class _Process:
    """A process that trains one run at a time; what it says goes to `inbox` with the process, at
    its end None.
    """

    def __init__(self, ablation: Ablation, inbox: queue.SimpleQueue[tuple[_Process, Any]]) -> None:
        self.run: Planned | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C reaches only the process that started it
        )
        self._tell(
            {
                "out": str(ablation.out.absolute()),
                "device": str(ablation.device),
                "threads": torch.get_num_threads(),
            }
        )
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def start(self, run: Planned) -> None:
        self.run = run
        self._tell({"rung": run.rung.name, "seed": run.seed})

    def stop(self) -> None:
        """Have it save the state of its run."""
        self._tell("stop")

    def end(self) -> None:
        """End it now; what its run saved stays."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._errors.close()

    def death(self) -> tuple[str, bool]:
        """Of a process that has ended without a word: why, and whether for want of memory."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, perhaps because the memory ran out", True
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f" ({brief(lines[-1])})" if lines else ""
        return f"its process ended with exit code {code}{last}", False

    def _tell(self, message: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # of one that is dead, as `inbox` will say
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self, inbox: queue.SimpleQueue[tuple[_Process, Any]]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                inbox.put((self, json.loads(line)))
        inbox.put((self, None))


class _Crew:
    """The processes at work on a ladder, and the runs that they have not begun."""

    def __init__(
        self,
        ablation: Ablation,
        jobs: int,
        report: Callable[[Rung, int, StepReport], None],
        lost: Callable[[Planned, str], None],
    ) -> None:
        self._ablation, self._jobs = ablation, jobs
        self._report, self._lost = report, lost
        compiles = ablation.plan.compile or ablation.device.type == "cuda"
        self._waiting = Waiting(ablation.unfinished, compiles=compiles)
        self._processes: list[_Process] = []
        self._inbox: queue.SimpleQueue[tuple[_Process, Any]] = queue.SimpleQueue()
        self._stopping = False
        self.failed: list[str] = []  # the names of runs

    def employ(self) -> bool:
        """Start as many runs as may; whether any is in progress."""
        while (busy := sum(p.run is not None for p in self._processes)) < self._jobs:
            run = self._waiting.take()
            if run is None:
                return busy > 0
            process = next((p for p in self._processes if p.run is None), None)
            if process is None:
                process = _Process(self._ablation, self._inbox)
                self._processes.append(process)
            process.start(run)
        return True

    def hear(self) -> None:
        """Take in what a process says, if one does so soon."""
        try:
            process, message = self._inbox.get(timeout=_PATIENCE)
        except queue.Empty:
            return
        if process not in self._processes:  # its last words
            return
        run = process.run
        match message:
            case {"step": step} if run is not None:
                self._waiting.made_a_step(run)
                self._report(run.rung, run.seed, StepReport(**step))
            case {"over": _} if run is not None:
                self._waiting.made_a_step(run)
                process.run = None
            case {"failed": why, "memory": memory}:
                self._fail(process, why, memory)
            case None:
                self._fail(process, *process.death())

    def stop(self) -> None:
        """Have all runs saved, and start no other."""
        if not self._stopping:
            self._stopping = True
            self._waiting.clear()
            for process in self._processes:
                process.stop()

    def dismiss(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.end()

    def _fail(self, process: _Process, why: str, memory: bool) -> None:
        """A process ends, and perhaps its run fails."""
        self._processes.remove(process)
        process.end()
        if (run := process.run) is None:
            return
        self._waiting.ended(run)
        if memory and self._jobs > 1:
            self._jobs -= 1
            if not self._stopping:
                self._waiting.put_back(run)
            why = why.partition(";")[0]  # what follows is for a run that has all of the memory
            once = "one run is" if self._jobs == 1 else f"{self._jobs} runs are"
            self._lost(run, f"{run.title}: {why}; it continues later, and {once} at work at once")
        else:
            self.failed.append(run.title)
            self._lost(run, f"{run.title} failed: {why}")


def work() -> None:
    """The program of a process."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is not a message
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stop = threading.Event()
    where = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_listen, args=(inbox, stop), daemon=True).start()

    def tell(**message: object) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    torch.set_num_threads(where["threads"])
    while True:
        asked = inbox.get()
        try:
            on, _ = device.choose(where["device"])
            ablation = Ablation(Path(where["out"]), device=on)
            run = ablation.run(asked["rung"], asked["seed"])
            ablation.train_one(run, lambda step: tell(step=asdict(step)), stop.is_set)
        except Exception as error:
            # A trainer says it in its own words, and keeps what it was told.
            causes = (error, error.__cause__)
            memory = any(isinstance(one, Exception) and gpu.ran_out(one) for one in causes)
            if not (memory or isinstance(error, OssiaError)):
                raise
            tell(failed=brief(error), memory=memory)
        else:
            tell(over=True)


def _listen(inbox: queue.SimpleQueue[dict[str, Any]], stop: threading.Event) -> None:
    """Take in what the process is to do; at the end of its input it ends at once."""
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if message == "stop":
            stop.set()
        else:
            inbox.put(message)
    os._exit(0)
