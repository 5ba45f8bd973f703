"""The training loop: each step is a function of its number and the weights before it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ossia.errors import OssiaError, brief
from ossia.model import Decoder
from ossia.system.gpu import ran_out
from ossia.train import budget, device, parallel, state
from ossia.train.balance import shares
from ossia.train.corpus.packing import nats_per_token
from ossia.train.corpus.shards import Batch
from ossia.train.evaluate import SummedLoss
from ossia.train.loss import IGNORED
from ossia.train.objective import Losses, Objective
from ossia.train.optimizer import build_optimizers
from ossia.train.rounding import set_rounding
from ossia.train.settings import Precision, Training, derived_seed, learning_rate
from ossia.train.state import Progress

DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}

# A loss above this multiple of a uniform guess's, log(vocabulary), means that training diverged.
_EXPLODED = 2.0


@dataclass(frozen=True)
class _Share:
    """What a process trains on in a step: its rows of each part, on its device; the targets of the
    whole batch over the number of processes; and the tokens of the whole batch.
    """

    parts: list[Batch]
    count: float
    tokens: int


@dataclass(frozen=True)
class StepReport:
    """The figures of one step, for progress bars and curves."""

    step: int  # steps done, out of `steps`
    steps: int
    loss: float  # nats per token, without the balance loss
    balance: float | None  # the balance loss, 1 when even; None without experts
    gradient_norm: float  # before clipping
    learning_rate: float
    tokens_per_second: float  # of this step
    evaluation: dict[str, Any] | None  # the curve's new entry, if this step was evaluated


class Trainer:
    """Trains `decoder` in place, on the device that it is on, with the batch of each step; saves
    states in `folder`, from which `resume` continues.

    Parameters that require no gradient do not change. `batches` are on the CPU. `evaluate` computes
    the curve's figures from the current weights' loss.
    """

    def __init__(
        self,
        decoder: Decoder,
        batches: Callable[[int], Batch],
        evaluate: Callable[[SummedLoss], dict[str, float]],
        settings: Training,
        folder: Path,
    ) -> None:
        for rows in settings.rows:
            if rows % (settings.accumulate * parallel.size()):
                raise OssiaError(
                    f"{parallel.size()} processes times --accumulate {settings.accumulate} do not "
                    f"divide a batch of {rows} sequences"
                )
        self.decoder, self.settings, self.folder = decoder, settings, folder
        self.device = decoder.device
        self._batches, self._evaluate = batches, evaluate
        self.progress = Progress()
        self._saved_step: int | None = None
        self._ahead: tuple[int, _Share] | None = None  # the next step's, on its way to a GPU
        self._objective = Objective(decoder, balance=settings.balance, z_loss=settings.z_loss)
        if settings.recompute:
            decoder.recompute_layers()
        parallel.shard(self._objective, decoder, experts=settings.expert_parallel)
        self.optimizers = build_optimizers(decoder, settings)

    def resume(self) -> None:
        """Continue from the newest undamaged state, bit for bit, or from the first step if there is
        none.
        """
        saved = state.load(self.folder, self.decoder, self.optimizers)
        if saved is not None:
            self.progress, self._saved_step = saved, saved.step

    def save(self) -> None:
        """Save the state, unless this step's has been saved already."""
        if self._saved_step != self.progress.step:
            state.save(self.folder, self.decoder, self.optimizers, self.progress)
            self._saved_step = self.progress.step

    def run(
        self,
        report: Callable[[StepReport], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step and return True; or until `stopped()`, save the state and return
        False.

        Raises OssiaError if training diverges. A state is saved before the loss of its weights is
        known; the next step computes it, and removes the state if the loss is bad.
        """
        while self.progress.step < self.settings.steps:
            if parallel.first_says(stopped):
                self.save()
                return False
            with self.within_memory(f"in step {self.progress.step + 1}"):
                done = self.step()
            if done.step == done.steps or done.step % self.settings.save_every == 0:
                self.save()
            report(done)
        self.check()
        return True

    @property
    def saved_step(self) -> int | None:
        """The step of the newest saved state; None if this object neither saved nor loaded one."""
        return self._saved_step

    def time_pass(self, most: int, precision: Precision | None = None) -> tuple[float, int]:
        """The seconds of a forward and backward pass over at most `most` tokens of the next batch,
        and their number. Nothing changes: the gradients are dropped. precision: the run's own if
        None.
        """
        part = self._parts(self.progress.step)[0]
        length = min(most, part.inputs.shape[1])
        rows = min(max(1, most // length), part.inputs.shape[0])
        tensors = [t[:rows, :length] for t in (part.inputs, part.targets, part.documents)]
        count = max(1, int((tensors[1] != IGNORED).sum()))
        tensors = [device.send(t, self.device) for t in tensors]
        device.wait_for(self.device)
        start = time.perf_counter()
        self._objective.train()
        try:
            with autocast(precision or self.settings.dtype, self.device):
                losses = self._objective(*tensors, count, 1.0)
            losses.total.backward()
            device.wait_for(self.device)
            return time.perf_counter() - start, rows * length
        finally:
            self._drop_gradients()

    def _drop_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def compile(self) -> str | None:
        """Compile the decoder's layers, which takes up to a minute and changes rounding. Returns
        why they stay as they were, if they cannot be compiled.
        """
        self.decoder.compile_layers()
        try:
            with self.within_memory("while the layers were compiled"):
                self.time_pass(self._parts(self.progress.step)[0].inputs.numel())
        except OssiaError:
            raise
        except Exception as error:  # the compiler's are of many types
            self.decoder.compile_layers(False)
            return brief(error)
        return None

    def check(self) -> None:
        """Raise OssiaError if the weights have diverged, judged by the last batch's loss. Needed
        after the last step, because no next step checks it.
        """
        step = self.progress.step
        self._refuse_nonsense(step, nats_per_token(self.summed_loss, self._parts(step - 1)))

    @contextmanager
    def within_memory(self, when: str) -> Iterator[None]:
        """Raise OssiaError, with what is saved and what needs less, if the memory runs out."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            saved = "no state is saved"
            if self._saved_step is not None:
                saved = f"the state after step {self._saved_step} is saved"
            raise OssiaError(
                f"the memory of {self.device} ran out {when} (does another program use it?); "
                f"{saved}; {budget.SAVE_MEMORY}"
            ) from error

    def step(self) -> StepReport:
        """One update of the weights, and the evaluation if one is due."""
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
            evaluation = self.evaluate(loss)
        return StepReport(
            progress.step, settings.steps, loss, balance, norm, rate, tokens / seconds, evaluation
        )

    def summed_loss(
        self, inputs: Tensor, targets: Tensor, documents: Tensor | None = None
    ) -> Tensor:
        """The loss of the current weights, without dropout; a `SummedLoss`."""
        self._objective.eval()
        documents = None if documents is None else device.send(documents, self.device)
        tensors = device.send(inputs, self.device), device.send(targets, self.device)
        return self._objective(*tensors, documents, 1).cross_entropy

    def evaluate(self, loss: float | None) -> dict[str, Any]:
        """Evaluate the current weights and add an entry to the curve; `loss` is the step's."""
        with self._objective.routers.counting() as counts:
            figures = self._evaluate(self.summed_loss)
        entry: dict[str, Any] = {
            "step": self.progress.step,
            "seconds": round(self.progress.seconds, 1),
            "loss": loss,
            **figures,
        }
        if counts:
            entry["expert_shares"] = shares(counts)
        self.progress.curve.append(entry)
        return entry

    def _update(self, step: int, rate: float) -> tuple[float, float | None, float, int]:
        """Update the weights. Returns loss and balance before it, gradient norm, and tokens."""
        settings = self.settings
        # This makes dropout a function of the step, on a GPU too.
        seed = derived_seed(settings.seed, step)
        torch.manual_seed(seed * parallel.size() + parallel.rank())
        share = self._share(step)
        self._objective.train()
        rounds = step >= settings.steps - settings.mxfp4_steps
        set_rounding(self.decoder, rounds)
        losses: list[Losses] = []
        for part in share.parts:
            tensors = part.inputs, part.targets, part.documents
            with autocast(settings.dtype, self.device):
                losses.append(self._objective(*tensors, share.count, 1 / settings.accumulate))
            losses[-1].total.backward()
        set_rounding(self.decoder, False)
        figures = [torch.stack([part.cross_entropy for part in losses]).sum()]
        balances = [part.balance for part in losses if part.balance is not None]
        if balances:
            figures.append(torch.stack(balances).sum())
        means = parallel.mean(torch.stack(figures))
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), settings.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.device.type == "cuda":  # which is busy meanwhile
            self._ahead = step + 1, self._share(step + 1)
        # The only time that the host waits for a GPU.
        loss, *balance, norm = torch.cat([means, norm[None]]).tolist()
        self._refuse_nonsense(step, loss, norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss, balance[0] if balance else None, norm, share.tokens

    def _share(self, step: int) -> _Share:
        """What this process trains on in a step."""
        if self._ahead is not None and self._ahead[0] == step:
            return self._ahead[1]
        parts = self._parts(step)
        # FSDP averages over the processes, so each divides by its share of the targets.
        count = sum(int((part.targets != IGNORED).sum()) for part in parts) / parallel.size()
        tokens = sum(part.inputs.numel() for part in parts)
        own = [
            Batch(
                *(
                    device.send(parallel.own_rows(tensor), self.device)
                    for tensor in (part.inputs, part.targets, part.documents)
                )
            )
            for part in parts
        ]
        return _Share(own, count, tokens)

    def _parts(self, step: int) -> list[Batch]:
        """The batch of a step in `accumulate` parts with equal numbers of rows."""
        batch = self._batches(step)
        tensors = batch.inputs, batch.targets, batch.documents
        parts = (tensor.chunk(self.settings.accumulate) for tensor in tensors)
        return [Batch(*part) for part in zip(*parts, strict=True)]

    def _refuse_nonsense(self, step: int, loss: float, norm: float = 0.0) -> None:
        """Raise OssiaError before a diverged step changes the weights. `loss` is that of the
        weights after `step` steps; if it is bad, their state is removed.
        """
        uniform = math.log(self.decoder.config.vocab_size)
        bad_weights = True
        if not math.isfinite(loss):
            problem = f"the loss is {loss}"
        elif loss > _EXPLODED * uniform:
            problem = f"the loss exploded to {loss:.1f}, where a uniform guess has {uniform:.1f},"
        elif not math.isfinite(norm):
            problem, bad_weights = f"the gradient is {norm}", False
        else:
            return
        if bad_weights:
            good = parallel.first_says(lambda: state.fall_back(self.folder, step))
        else:
            good = parallel.first_says(lambda: state.newest(self.folder))
        where = "no good state was saved" if good is None else f"the last good state is {good}"
        raise OssiaError(
            f"{problem} after {step} steps; {where}. Resuming would repeat it: start in another "
            "folder with a lower --learning-rate"
        )


@contextmanager
def autocast(dtype: str, on: torch.device = device.CPU) -> Iterator[None]:
    """Compute matrix products in bfloat16, or do nothing for float32."""
    with torch.autocast(on.type, DTYPES[Precision(dtype)], enabled=dtype != Precision.FLOAT32):
        yield
