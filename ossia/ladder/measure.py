"""Speed and memory of a ladder's rungs on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from ossia import ops
from ossia.config import ModelConfig
from ossia.engine import Engine
from ossia.ladder.results import Measurements, RungMeasurement
from ossia.ladder.run import Ablation, is_packed
from ossia.measure.machine import describe
from ossia.measure.random_weights import random_decoder
from ossia.measure.speed import SHORT_PROMPT, UNTIMED, EngineModel, decoding_rate, turn_about
from ossia.options import EngineOptions
from ossia.system import records
from ossia.system.files import write_json, writing
from ossia.train.device import send
from ossia.train.loop import autocast
from ossia.train.objective import Objective

_DECODED = 64  # tokens of a sequence, each time decoding is measured

Progress = Callable[[int, int], None]  # measurements done, of


def measured(
    ablation: Ablation, turns: int, *, again: bool, progress: Progress = lambda *_: None
) -> Measurements:
    """The measurements in the ladder's folder; taken now if there are none, or `again`."""
    file: Path = ablation.out / "measured.json"
    if again or not file.exists():
        found = measure(ablation, turns, progress)
        with writing(ablation.out):
            write_json(file, records.to_json(found))
    return records.read(Measurements, file)


def measure(ablation: Ablation, turns: int, progress: Progress = lambda *_: None) -> Measurements:
    """Training and decoding speed of every rung, and the memory of a training step.

    The rungs are measured one after another, `turns` times over, so that a machine whose speed
    drifts does so for all of them.
    """
    backend = ops.select("auto", "cpu")
    done, total = 0, (2 * turns + 1) * len(ablation.rungs)

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    training = {rung.name: _training(ablation, config) for rung, config in ablation.rungs}
    for step in training.values():
        step()  # allocates its memory now
        advance()
    trained = turn_about(training, turns, advance)
    decoding = {rung.name: _decoding(config, backend) for rung, config in ablation.rungs}
    decoded = turn_about(decoding, turns, advance)
    return Measurements(
        date=date.today().isoformat(),
        machine=describe(),
        threads=torch.get_num_threads(),
        backend=backend.name,
        turns=turns,
        rungs={
            rung.name: RungMeasurement(
                trained[rung.name], decoded[rung.name], _activation_bytes(ablation, config)
            )
            for rung, config in ablation.rungs
        },
    )


def _training(ablation: Ablation, config: ModelConfig) -> Callable[[], float]:
    """A training step a call, in tokens per second; with MXFP4 every step rounds the experts."""
    settings = ablation.plan.settings(packed=is_packed(config), seed=0)
    if is_packed(config):
        settings = replace(settings, mxfp4_steps=settings.steps)
    trainer = ablation.trainer(config, settings, ablation.out)
    return lambda: trainer.step().tokens_per_second


def _decoding(config: ModelConfig, backend: ops.Backend) -> Callable[[], float]:
    """Tokens per second of one sequence, with random weights of the config's shapes."""
    engine = Engine(random_decoder(config, backend), EngineOptions(max_batch=1))
    model = EngineModel(engine, _DECODED + UNTIMED)
    return lambda: decoding_rate(model, [range(SHORT_PROMPT)], _DECODED)


def _activation_bytes(ablation: Ablation, config: ModelConfig) -> int:
    """Bytes that autograd holds between the forward and the backward pass over one batch."""
    settings = ablation.plan.settings(packed=False, seed=0)
    decoder = ablation.trainer(config, settings, ablation.out).decoder
    batch = ablation.batches(settings)(0)
    objective = Objective(decoder, balance=settings.balance, z_loss=settings.z_loss)
    tensors = (batch.inputs, batch.targets, batch.documents)
    own = [send(tensor, ablation.device) for tensor in tensors]
    with autocast(settings.dtype, ablation.device):
        return kept_bytes(objective, *own, batch.inputs.numel())


def kept_bytes(module: nn.Module, *inputs: object) -> int:
    """Bytes that autograd holds between the forward pass of `module` and its backward pass, without
    the parameters. A storage counts once and whole, however many saved tensors share it.
    """
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # A saved view keeps its whole storage alive.
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            held[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(*inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())
