"""Our training loop on a card."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from ossia.measure.gpu.cases import Case, Measure, Trained
from ossia.measure.gpu.parts import Teller, seconds
from ossia.model import Decoder
from ossia.ops.training import for_device
from ossia.train.corpus.shards import TextBatches
from ossia.train.loop import Trainer
from ossia.train.settings import Precision, Settings

UNTIMED = 3  # steps, in which kernels are compiled and memory is allocated


def measure(model: Trained, teller: Teller) -> None:
    """Tokens per second of steps of `Trainer`, in bfloat16, on random text."""
    case = Case(model.name, Measure.TRAINING, model.rows, model.length)

    def train() -> float:
        trainer = _trainer(model, teller.device)
        for _ in range(UNTIMED):
            trainer.step()
        taken = [
            seconds(teller.device, trainer.step)
            for _ in range(teller.suite.turns * teller.suite.steps // 2)
        ]
        return model.rows * model.length / statistics.median(taken)

    teller.measure(case, train, needs=10)


def _trainer(model: Trained, device: torch.device) -> Trainer:
    decoder = Decoder(model.config, for_device(device))
    decoder.init_weights(torch.Generator().manual_seed(0))
    decoder.to(device)
    settings = Settings(
        steps=10**6,
        eval_every=10**6,
        batch_size=model.rows,
        length=model.length,
        dtype=Precision.BFLOAT16,
        learning_rate=6e-4,
    )
    tokens = 100 * model.rows * model.length
    text = torch.randint(model.config.vocab_size, (tokens,), dtype=torch.int32)
    batches = TextBatches([text], settings, separator=-1)
    return Trainer(decoder, batches, lambda _: {}, settings, Path(tempfile.gettempdir()))
