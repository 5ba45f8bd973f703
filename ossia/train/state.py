"""What a run needs to continue bit for bit, in one safetensors file that is replaced whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ossia.errors import OssiaError

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """How far a run has come. Batches are a function of the step, so it is the position in the data
    too.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)  # one entry an evaluation


def save(
    file: Path, decoder: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write weights, optimizer moments, random state and progress; a crash leaves the old file
    whole.
    """
    tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
    for name, parameter in decoder.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for moment in _MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    temporary = file.with_name(file.name + ".tmp")
    try:
        save_file(tensors, temporary, metadata={"progress": json.dumps(vars(progress))})
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OssiaError(f"{file}: cannot save the run ({error})") from error


def load(file: Path, decoder: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Fill decoder, optimizer and torch's random state; returns how far the run was."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise OssiaError(f"{file}: not the state of a run ({error})") from error
    try:
        progress = Progress(**json.loads(metadata["progress"]))
        random = tensors["random"]
    except (KeyError, TypeError, ValueError) as error:
        raise OssiaError(f"{file}: not the state of a run ({error!r})") from error
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            weight = tensors.get(f"weight.{name}")
            if weight is None or weight.shape != parameter.shape:
                raise OssiaError(f"{file}: {name} is missing or has another shape")
            parameter.copy_(weight)
            moments = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
            if moments:
                optimizer.state[parameter] = {"step": torch.tensor(float(progress.step)), **moments}
    torch.set_rng_state(random)
    return progress
