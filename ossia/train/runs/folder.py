"""A run in a folder, from the first check to the finished checkpoint; `ossia train` and
`ossia finetune` share it.

The folder holds `training/` (settings, tokens, states) until the run is finished, then the
checkpoint and `record.json`.
"""

from __future__ import annotations

import platform
import shlex
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

import tokenizers
import torch

from ossia.errors import OssiaError
from ossia.options import flag
from ossia.system.claims import Claim, claim
from ossia.system.files import check_new_folder, creating, read_json, write_json, writing
from ossia.train import parallel
from ossia.train.device import CPU, describe, processes_here
from ossia.train.fastest import Pass, choose_threads, compare_precisions, faster
from ossia.train.loop import StepReport, Trainer
from ossia.train.settings import Precision, Training
from ossia.train.utilization import Utilization

# Writes a run into its new folder and returns its description for run.json.
Prepared = Callable[[Path], dict[str, Any]]


class FolderRun(ABC):
    """A run that can be trained, stopped, resumed and exported; made by `start` or `resume`."""

    COMMAND: ClassVar[str]  # the `ossia` command that starts such runs
    SETTINGS: ClassVar[type[Training]]

    settings: Training
    trainer: Trainer
    notes: Sequence[str] = ()  # lines to show before training starts
    compiled = False  # whether torch.compile has the layers

    def __init__(self, out: Path, device: torch.device = CPU) -> None:
        self.out, self.folder, self.device = out, out / "training", device
        self._claim: Claim | None = None
        parallel.first_does(self._open)
        file = self.folder / "run.json"
        described = read_json(file)
        command = described.get("command", self.COMMAND)
        if command != self.COMMAND:
            raise OssiaError(f"{out} holds a run of ossia {command}; resume it with that")
        try:
            self.settings = self.SETTINGS(**described["settings"])
        except (KeyError, TypeError, OssiaError) as error:
            raise OssiaError(f"{file}: not the settings of a run ({error})") from error
        try:
            self.read(described)
        except OssiaError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise OssiaError(f"{file}: not the description of a run ({error})") from error
        self.build()

    def _open(self) -> None:
        """Claim the folder of an unfinished run."""
        if self.folder.is_dir():
            self._claim = claim(self.folder)
        if (self.out / "record.json").exists():
            if self._claim is not None:  # killed after its last write
                shutil.rmtree(self.folder, ignore_errors=True)
            raise OssiaError(f"{self.out} holds a finished run; there is nothing to resume")
        if not (self.folder / "run.json").is_file():
            raise OssiaError(f"{self.out} holds no run to resume")

    def close(self) -> None:
        """Let other processes continue the run; this object must not train any more."""
        self._claim = None

    def check_claim(self) -> None:
        """Raise OssiaError if the run's folder was removed or replaced."""
        if self._claim is not None:
            self._claim.check(self.folder)

    @classmethod
    @abstractmethod
    def prepare(cls, settings: Any, device: torch.device) -> Prepared:
        """Read and check everything; the returned function writes the run into a new folder."""

    @abstractmethod
    def read(self, described: dict[str, Any]) -> None:
        """Read what `prepare` described and wrote, except for the settings."""

    @abstractmethod
    def build(self) -> None:
        """Build the decoder, on the device, and its trainer."""

    @abstractmethod
    def export(self) -> dict[str, Any]:
        """Write the checkpoint, evaluate it as loaded from disk, then write and return the record.

        If there are several processes, the first one does this and the others return {}.
        """

    @classmethod
    def start(cls, settings: Training, out: Path, device: torch.device = CPU) -> Self:
        """Read the data and write a new run into the folder `out`, which appears only when it is
        complete. If there are several processes, the first one does this.

        Raises OssiaError for a folder in use and for data, sizes or formats that cannot work.
        """

        claims: list[Claim] = []

        def write() -> bool:
            if (out / "training" / "run.json").exists():
                raise OssiaError(f"{out} holds an unfinished run; continue it with --resume")
            check_new_folder(out)
            prepared, existed = cls.prepare(settings, device), out.exists()
            with writing(out), creating(out) as new:
                (new / "training").mkdir()
                described = {"command": cls.COMMAND, **prepared(new)}
                write_json(new / "training" / "run.json", described)
                claims.append(claim(new / "training"))
            return existed

        existed = parallel.first_does(write)
        with removed_on_failure(out, existed):
            return cls(out, device)

    @classmethod
    def resume(
        cls, out: Path, asked: Mapping[str, Any] | None = None, device: torch.device = CPU
    ) -> Self:
        """Continue the run in `out` from its last saved state, or from its first step.

        Raises OssiaError if `asked` has settings with other values than those the run began with.
        """
        run = cls(out, device)
        # To ask again for the faster precision is to ask for the one that was.
        changed = {k: v for k, v in (asked or {}).items() if (k, v) != ("dtype", Precision.AUTO)}
        run.settings.refuse_changes(changed)
        run.trainer.resume()
        return run

    def train(
        self,
        report: Callable[[StepReport], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step and return True, or until `stopped()` and return False; either way
        the state is saved.
        """
        self.choose_precision()
        if parallel.rank() == 0 and self.trainer.progress.step < self.settings.steps:
            self._note_session()

        def checked() -> bool:
            self.check_claim()
            return stopped()

        return self.trainer.run(report, checked)

    def use_threads(self, threads: int | None) -> None:
        """Compute with so many threads. None takes those that a resumed run last had, so that it
        continues bit for bit, and for a new run measures whether one thread or all are faster.
        """
        sessions = self._sessions()
        if threads is None and sessions:
            threads = min(int(sessions[-1]["threads"]), torch.get_num_threads())
        if threads is not None:
            torch.set_num_threads(threads)
        elif self.device.type == "cuda":
            return  # the CPU only launches
        elif parallel.size() == 1 and (rates := choose_threads(self._pass_in(None))):
            measured = ", ".join(f"{rate:,.0f} tokens/s with {n}" for n, rate in rates.items())
            note = (
                f"threads: {torch.get_num_threads()}, the faster ({measured}); --threads sets them"
            )
            self.notes = (*self.notes, note)

    def choose_precision(self) -> None:
        """Settle a precision left to the run: the faster one, which it then keeps. All processes
        take the first one's measurements.
        """
        if self.settings.dtype is not Precision.AUTO:
            return
        with self.trainer.within_memory("in float32 and in bfloat16"):
            rates = compare_precisions(self._pass_in)
        self.settings = replace(self.settings, dtype=faster(rates))
        self.trainer.settings = self.settings
        parallel.first_does(self._write_precision)
        measured = ", ".join(
            f"{rate:,.0f} tokens/s in {name}" if rate else f"{name} runs out of memory"
            for name, rate in rates.items()
        )
        note = f"precision: {self.settings.dtype}, the faster ({measured}); --dtype sets it"
        self.notes = (*self.notes, note)

    def _write_precision(self) -> None:
        described = read_json(self.folder / "run.json")
        described["settings"]["dtype"] = self.settings.dtype
        write_json(self.folder / "run.json", described)

    def _pass_in(self, precision: Precision | None) -> Pass:
        """The first process's time of a pass; None is the run's own precision, or float32 until it
        is chosen.
        """
        if precision is None and self.settings.dtype is Precision.AUTO:
            precision = Precision.FLOAT32

        def time_pass(most: int) -> tuple[float, int]:
            # Others would wait for a process that went on without its pass.
            alone = parallel.size() == 1
            with nullcontext() if alone else self.trainer.within_memory("in a timed pass"):
                measured = self.trainer.time_pass(most, precision)
            return parallel.first_says(lambda: measured)

        return time_pass

    def wants_compiler(self, wanted: bool | None) -> bool:
        """Whether to compile the layers: as asked, or as a resumed run last did, or, if it is new,
        on a GPU.
        """
        sessions = self._sessions()
        if wanted is not None:
            return wanted
        return sessions[-1].get("compiled", False) if sessions else self.device.type == "cuda"

    def compile(self) -> None:
        """Compile the layers; what cannot be compiled is trained as it is, with a note."""
        problem = self.trainer.compile()
        self.compiled = problem is None
        if problem is not None:
            note = f"the layers are not compiled, which would be faster ({problem})"
            self.notes = (*self.notes, note)

    def utilization(self) -> Utilization | None:
        """Measures how well the run uses the machine, if its FLOPs are known."""
        return None

    def circumstances(self) -> dict[str, Any]:
        """The part of the record that all kinds of runs share."""
        progress = self.trainer.progress
        return {
            "command": command(self.COMMAND, self.settings, self.out),
            **self._means(),
            "sessions": self._sessions(),
            "seconds": round(progress.seconds, 1),
            "steps": progress.step,
            "tokens": progress.tokens,
            "bytes": sum(f.stat().st_size for f in self.out.iterdir() if f.is_file()),
        }

    def _note_session(self) -> None:
        """Record what the next steps are computed with if it has changed: a run may be resumed with
        other versions or threads, and its results then differ in rounding.
        """
        step, means = self.trainer.progress.step, self._means()
        kept = [session for session in self._sessions() if session["from_step"] < step]
        if not kept or kept[-1] != {"from_step": kept[-1]["from_step"], **means}:
            kept.append({"from_step": step, **means})
        with writing(self.out):
            write_json(self.folder / "sessions.json", {"sessions": kept})

    def _sessions(self) -> list[dict[str, Any]]:
        return _sessions(self.folder)

    def _means(self) -> dict[str, Any]:
        """What the last bits of a run's numbers depend on, besides its settings."""
        return {
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "processes": parallel.size(),
            **describe(self.device),
            **({"index": self.device.index} if self._has_index() else {}),
            **({"compiled": True} if self.compiled else {}),
        }

    def _has_index(self) -> bool:
        """Whether the GPU's number tells it from others: each of several processes has its own."""
        return self.device.type == "cuda" and parallel.size() == 1

    def finish(self, record: dict[str, Any]) -> None:
        """Write the record and remove what only training needed."""
        self.check_claim()
        with writing(self.out):
            write_json(self.out / "record.json", record)
        shutil.rmtree(self.folder)


def _sessions(folder: Path) -> list[dict[str, Any]]:
    file = folder / "sessions.json"
    return read_json(file)["sessions"] if file.exists() else []


def last_device(out: Path) -> str:
    """The device that the run in `out` last trained on, by the name that `choose` takes; auto if it
    has not trained. A GPU's number is left out if several processes resume, or it is not here.
    """
    sessions = _sessions(out / "training")
    if not sessions:
        return "auto"
    kind, index = sessions[-1].get("device", "cpu"), sessions[-1].get("index")
    if index is None or processes_here() > 1 or index >= torch.cuda.device_count():
        return kind
    return f"{kind}:{index}"


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    return {
        "ossia": version("ossia"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
    }


def command(name: str, settings: Any, out: Path) -> str:
    """The `ossia` command that repeats the run: every setting that is not the default."""
    words = ["ossia", name]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is True:
            words.append(flag(field.name))
        elif value != field.default:
            words += [flag(field.name), str(value)]
    return shlex.join([*words, "--out", out.name])


@contextmanager
def removed_on_failure(out: Path, existed: bool) -> Iterator[None]:
    """Remove `out` if the block fails, or empty it if it `existed`. If there are several processes,
    the first one does this.
    """
    try:
        yield
    except BaseException:
        if parallel.rank() == 0:
            shutil.rmtree(out, ignore_errors=True)
            if existed:
                out.mkdir(exist_ok=True)
        raise
