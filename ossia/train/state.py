"""The saved states that let a run continue bit for bit, written by torch.distributed.checkpoint.
Each saved step is a folder, which is complete or does not exist.
"""

from __future__ import annotations

import shutil
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from ossia.errors import OssiaError, brief
from ossia.system.files import read_json, sync_folder, write_json
from ossia.train import parallel

_KEPT = 2  # the newest state, and one to fall back to
_MANIFEST = "manifest.json"
_CHUNK = 1 << 24


@dataclass
class Progress:
    """How far a run has come. Batches and dropout are functions of the step, so it is also the
    position in the data and the random state.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)  # one entry per evaluation


def save(
    folder: Path,
    decoder: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Write weights, optimizer state and progress as folder/step-N; the previous state stays until
    this one is complete.

    All processes write one state together; any number of processes can load it.
    """
    final = _of_step(folder, progress.step)
    temporary = folder / f"{final.name}.tmp"
    try:
        if parallel.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            folder.mkdir(exist_ok=True)  # not its parents: a run's folder that was removed is gone
            temporary.mkdir()
        parallel.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about there being a single process
            save_tensors(_tensors(decoder, optimizers), checkpoint_id=temporary)
        if parallel.rank() == 0:
            files = {file.name: _checksum(file) for file in sorted(temporary.iterdir())}
            manifest = {"progress": vars(progress), "files": files}
            write_json(temporary / _MANIFEST, manifest)
            sync_folder(temporary)
            shutil.rmtree(
                final, ignore_errors=True
            )  # left by a run that then fell back to an earlier step
            temporary.rename(final)
            sync_folder(folder)
            _prune(folder, progress.step)
        parallel.wait()
    except (OSError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # makes room on a full disk
        raise OssiaError(f"{final}: cannot save the run: {_reason(error)}") from error


def load(
    folder: Path, decoder: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Progress | None:
    """Load decoder and optimizers from the newest undamaged state; None if no state was ever
    saved.

    Raises OssiaError if there are some, all of them damaged.
    """
    steps = _steps(folder)
    found = parallel.first_says(lambda: next((i for i, s in enumerate(steps) if _whole(s)), None))
    if found is None:
        if steps:
            raise OssiaError(f"{folder}: none of the {len(steps)} saved states is whole")
        return None
    step = steps[found]
    progress = Progress(**read_json(step / _MANIFEST)["progress"])
    known = FileSystemReader(step).read_metadata().state_dict_metadata
    for optimizer in optimizers:
        for name, parameter in _parameters(decoder, optimizer):
            prefix = f"optimizer.{name}."
            for key in filter(lambda key: key.startswith(prefix), known):
                shape = getattr(known[key], "size", torch.Size())
                alike = shape == parameter.shape
                value = torch.zeros_like(parameter) if alike else torch.zeros(shape)
                value = value.to(parameter.device)  # where a fused optimizer keeps it
                optimizer.state[parameter][key.removeprefix(prefix)] = value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_tensors(_tensors(decoder, optimizers), checkpoint_id=step)
    except (OSError, ValueError, CheckpointException) as error:
        raise OssiaError(f"{step}: not the state of this run: {_reason(error)}") from error
    return progress


def _reason(error: BaseException) -> str:
    """What went wrong, without the tracebacks that torch puts into its errors. Raises an interrupt
    that torch took for one.
    """
    if isinstance(error, CheckpointException):
        error = next((cause for cause, _ in error.failures.values()), error)
        if isinstance(error, KeyboardInterrupt):
            raise error
    while not isinstance(error, OSError) and (deeper := error.__cause__ or error.__context__):
        error = deeper
    return (isinstance(error, OSError) and error.strerror) or brief(error)


def fall_back(folder: Path, step: int) -> Path | None:
    """Remove the state of `step`, if there is one; returns the state that `load` would use now."""
    shutil.rmtree(_of_step(folder, step), ignore_errors=True)
    return newest(folder)


def newest(folder: Path) -> Path | None:
    """The state that `load` would use."""
    return next(filter(_whole, _steps(folder)), None)


def newest_step(folder: Path) -> int:
    """The step of the newest state, whole or not; 0 if there is none."""
    return max((int(state.name.removeprefix("step-")) for state in _steps(folder)), default=0)


def _tensors(decoder: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What training changes. Frozen weights are not saved: they are in the base checkpoint."""
    trained = [(name, p) for name, p in decoder.named_parameters() if p.requires_grad]
    tensors = {f"weight.{name}": p.detach() for name, p in trained}
    for optimizer in optimizers:
        for name, parameter in _parameters(decoder, optimizer):
            for key, value in optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _parameters(
    decoder: nn.Module, optimizer: torch.optim.Optimizer
) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the optimizer updates, by name."""
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in decoder.named_parameters() if id(p) in own]


def _of_step(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08}"


def _steps(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((s for s in folder.glob("step-*") if s.suffix != ".tmp"), reverse=True)


def _whole(step: Path) -> bool:
    """Whether every file has the content that was written."""
    try:
        files = read_json(step / _MANIFEST)["files"]
        return all(_checksum(step / name) == known for name, known in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _prune(folder: Path, step: int) -> None:
    """Remove incomplete states of killed runs, and all but the newest states up to this step."""
    for left in folder.glob("step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    current = _of_step(folder, step)
    steps = _steps(folder)
    for damaged in steps[: steps.index(current)]:  # undamaged, they would have been resumed from
        shutil.rmtree(damaged, ignore_errors=True)
    for old in _steps(folder)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
