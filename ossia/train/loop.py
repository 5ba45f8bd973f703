"""The training loop: each step a function of its number and the weights before it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.train import parallel, quantized, state
from ossia.train.balance import shares
from ossia.train.evaluate import HeldOut, bits_per_byte
from ossia.train.objective import Losses, Objective, recompute_layers
from ossia.train.optimizer import build_optimizers
from ossia.train.settings import Precision, Settings, learning_rate
from ossia.train.shards import Batches, documents_in
from ossia.train.state import Progress

DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}

# A loss this many times that of knowing nothing, log(vocabulary), comes from weights gone wild.
_EXPLODED = 2.0


@dataclass(frozen=True)
class StepReport:
    """One step, as a progress bar or a curve wants it."""

    step: int  # steps done, of
    steps: int
    loss: float  # nats a token, without the balance loss
    balance: float | None  # of the experts, 1 when even; None without experts
    gradient_norm: float  # before clipping
    learning_rate: float
    tokens_per_second: float  # of late
    evaluation: dict[str, Any] | None  # the curve's new entry, where this step was evaluated


class Trainer:
    """Trains `decoder` in place; its state is saved under `folder`, where `resume` finds it."""

    def __init__(
        self,
        decoder: Decoder,
        shards: Sequence[Tensor],
        held_out: Sequence[HeldOut],
        settings: Settings,
        folder: Path,
        separator: int,
    ) -> None:
        for rows in settings.rows:
            if rows % (settings.accumulate * parallel.size()):
                raise OssiaError(
                    f"{parallel.size()} processes times --accumulate {settings.accumulate} do not "
                    f"divide a batch of {rows} sequences"
                )
        self.decoder, self.settings, self.held_out = decoder, settings, held_out
        self.folder, self.separator = folder, separator
        self.progress = Progress()
        self._saved_step: int | None = None
        self._rounded = quantized.attach(decoder)
        self._objective = Objective(decoder, balance=settings.balance, z_loss=settings.z_loss)
        if settings.recompute:
            recompute_layers(decoder)
        parallel.shard(self._objective, decoder, experts=settings.expert_parallel)
        self.optimizers = build_optimizers(decoder, settings)
        self._batches = Batches(shards, settings.batch_size, settings.length, settings.seed)
        if settings.long_length:
            rows = settings.rows[1]
            self._long = Batches(shards, rows, settings.long_length, settings.seed + 1)

    def resume(self) -> None:
        """Continue from the newest whole state, bit for bit, or from the first step if there is
        none.
        """
        saved = state.load(self.folder, self.decoder, self.optimizers)
        if saved is not None:
            self.progress, self._saved_step = saved, saved.step

    def save(self) -> None:
        """Write the state, unless this step's is written already."""
        if self._saved_step != self.progress.step:
            state.save(self.folder, self.decoder, self.optimizers, self.progress)
            self._saved_step = self.progress.step

    def run(
        self,
        report: Callable[[StepReport], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step and return True, or until `stopped()`, with the state saved, and
        return False.
        """
        while self.progress.step < self.settings.steps:
            if parallel.first_says(stopped):
                self.save()
                return False
            done = self.step()
            if done.step == done.steps or done.step % self.settings.save_every == 0:
                self.save()
            report(done)
        return True

    def step(self) -> StepReport:
        """One update of the weights, and the evaluation that is due after it."""
        settings, progress = self.settings, self.progress
        start = time.perf_counter()
        rate = learning_rate(settings, progress.step)
        loss, balance, norm, tokens = self._update(progress.step, rate)
        seconds = time.perf_counter() - start
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += seconds
        evaluation = None
        if progress.step == settings.steps or progress.step % settings.eval_every == 0:
            evaluation = self._evaluate(loss)
            progress.curve.append(evaluation)
        return StepReport(
            progress.step, settings.steps, loss, balance, norm, rate, tokens / seconds, evaluation
        )

    def bits_per_byte(self, length: int) -> dict[str, float]:
        """Of the held-out texts, by the weights as they are; see `evaluate.bits_per_byte`."""
        self._objective.eval()

        def loss(inputs: Tensor, targets: Tensor) -> Tensor:
            return self._objective(inputs, targets, None, 1).cross_entropy

        return bits_per_byte(loss, self.held_out, length)

    def _update(self, step: int, rate: float) -> tuple[float, float | None, float, int]:
        """Loss and balance before the update, the gradient's norm, and the tokens learned from."""
        settings = self.settings
        # Dropout too is a function of the step.
        torch.manual_seed((settings.seed * 1_000_003 + step) * parallel.size() + parallel.rank())
        inputs, targets = self._batch(step)
        documents = documents_in(inputs, self.separator)
        # Each process divides by its own tokens, and FSDP takes the mean over the processes.
        count = inputs.numel() // parallel.size()
        self._objective.train()
        self._rounded.on = step >= settings.steps - settings.mxfp4_steps
        parts = [x.chunk(settings.accumulate) for x in (inputs, targets, documents)]
        losses: list[Losses] = []
        for part in zip(*parts, strict=True):
            with autocast(settings.dtype):
                losses.append(self._objective(*map(parallel.own_rows, part), count))
            losses[-1].total.backward()
        self._rounded.on = False
        loss = parallel.mean(torch.stack([part.cross_entropy for part in losses]).sum()).item()
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), settings.clip)
        norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        self._refuse_nonsense(step, loss, norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        balances = [part.balance for part in losses if part.balance is not None]
        balance = parallel.mean(torch.stack(balances).sum()).item() if balances else None
        return loss, balance, norm, inputs.numel()

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        short = self.settings.steps - self.settings.long_steps
        return self._batches(step) if step < short else self._long(step - short)

    def _refuse_nonsense(self, step: int, loss: float, norm: float) -> None:
        """Raise OssiaError rather than let a step that went wrong reach the weights."""
        knows_nothing = math.log(self.decoder.config.vocab_size)
        if not math.isfinite(loss):
            problem = f"the loss is {loss}"
        elif not math.isfinite(norm):
            problem = f"the gradient is {norm}"
        elif loss > _EXPLODED * knows_nothing:
            problem = (
                f"the loss exploded to {loss:.1f}, where knowing nothing costs {knows_nothing:.1f}"
            )
        else:
            return
        good = parallel.first_says(lambda: state.newest(self.folder))
        where = "nothing was saved yet" if good is None else f"the last good state is {good}"
        raise OssiaError(
            f"{problem} at step {step + 1}; {where}: start in another folder with a lower "
            "--learning-rate"
        )

    def _evaluate(self, loss: float) -> dict[str, Any]:
        with self._objective.routers.counting() as counts:
            bits = self.bits_per_byte(self.settings.length)
        entry: dict[str, Any] = {
            "step": self.progress.step,
            "seconds": round(self.progress.seconds, 1),
            "loss": loss,
            "held_out_bits_per_byte": bits[""],
        }
        if counts:
            entry["expert_shares"] = shares(counts)
        return entry


@contextmanager
def autocast(dtype: str) -> Iterator[None]:
    """Matrix products in bfloat16, or everything as it is."""
    with torch.autocast("cpu", DTYPES[Precision(dtype)], enabled=dtype != Precision.FLOAT32):
        yield
