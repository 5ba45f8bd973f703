"""The training loop: AdamW with warm-up and cosine decay over batches that are a function of the
step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ossia.config import ExpertFormat
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.train import quantized, state
from ossia.train.balance import RouterLog
from ossia.train.data import Batches
from ossia.train.evaluate import HeldOut, bits_per_byte
from ossia.train.state import Progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BETAS = (0.9, 0.95)
_LARGEST_SEED = 2**32 - 1  # others are derived from it by multiplying


@dataclass(frozen=True)
class Settings:
    """All that decides what a run computes; a step is one batch."""

    data: str = "stdlib"
    config: str = "small-gpt-oss"
    vocab_size: int = 2048
    steps: int = 2000
    batch_size: int = 16  # sequences
    length: int = 256  # tokens
    long_length: int = 0  # of the last `long_steps` steps, whose batches have fewer sequences
    long_steps: int = 0
    learning_rate: float = 2e-3
    warmup: int = 100  # steps
    weight_decay: float = 0.1  # of matrices only
    clip: float = 1.0  # largest norm of the gradient
    balance: float = 0.01  # weight of the routers' load-balancing loss
    mxfp4_steps: int = 0  # the last steps see the experts' weights as MXFP4 will round them
    seed: int = 0
    experts: str = "mxfp4"  # how the checkpoint holds them: mxfp4 or dense
    dtype: str = "float32"  # of the matrix products; weights and moments are float32
    eval_every: int = 250
    save_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "length", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise OssiaError(f"{_option(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup", "long_length", "seed"):
            if getattr(self, name) < 0:
                raise OssiaError(f"{_option(name)} must not be negative, not {getattr(self, name)}")
        if self.seed > _LARGEST_SEED:
            raise OssiaError(f"--seed must be at most {_LARGEST_SEED}, not {self.seed}")
        for name in ("weight_decay", "balance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OssiaError(f"{_option(name)} must be 0 or more, not {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise OssiaError(f"{_option(name)} must be above 0, not {getattr(self, name)}")
        for name in ("long_steps", "mxfp4_steps"):
            if not 0 <= getattr(self, name) <= self.steps:
                raise OssiaError(f"{_option(name)} must lie between 0 and --steps {self.steps}")
        if bool(self.long_length) != bool(self.long_steps):
            raise OssiaError("--long-length and --long-steps go together")
        if self.long_length and (self.batch_size * self.length) % self.long_length:
            raise OssiaError(
                f"--long-length {self.long_length} does not divide a batch of "
                f"{self.batch_size} x {self.length} tokens"
            )
        if self.experts not in list(ExpertFormat):
            raise OssiaError(f"--experts must be mxfp4 or dense, not {self.experts}")
        if self.dtype not in DTYPES:
            raise OssiaError(f"--dtype must be one of {', '.join(DTYPES)}, not {self.dtype}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def learning_rate(settings: Settings, step: int) -> float:
    """Of step 0, 1, ...: a linear rise over `warmup` steps, then half a cosine that reaches zero
    after the last step.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2


def build_optimizer(decoder: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101) that decays matrices, not
    biases, norms or sinks.
    """
    matrices, others = [], []
    for name, parameter in decoder.named_parameters():
        decays = name.endswith(".weight") and parameter.ndim >= 2
        (matrices if decays else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS, fused=True)


@dataclass(frozen=True)
class StepReport:
    """One step, as a progress bar wants it."""

    step: int  # steps done, of
    steps: int
    loss: float  # nats a token, without the balance loss
    tokens_per_second: float  # of late
    evaluation: dict[str, float] | None  # the curve's new entry, where this step was evaluated


class Trainer:
    """Trains `decoder` in place; its state is saved in `file`, where `resume` finds it."""

    def __init__(
        self,
        decoder: Decoder,
        tokens: Tensor,
        held_out: Sequence[HeldOut],
        settings: Settings,
        file: Path,
    ) -> None:
        self.decoder, self.settings, self.held_out, self.file = decoder, settings, held_out, file
        self.optimizer = build_optimizer(decoder, settings)
        self.routers = RouterLog(decoder, decoder.config)
        self.progress = Progress()
        self._saved_step: int | None = None
        self._batches = Batches(tokens, settings.batch_size, settings.length, settings.seed)
        if settings.long_length:
            rows = settings.batch_size * settings.length // settings.long_length
            self._long = Batches(tokens, rows, settings.long_length, settings.seed + 1)

    def resume(self) -> None:
        """Continue from the saved state, bit for bit."""
        self.progress = state.load(self.file, self.decoder, self.optimizer)
        self._saved_step = self.progress.step

    def save(self) -> None:
        """Write the state, unless this step's is written already."""
        if self._saved_step != self.progress.step:
            state.save(self.file, self.decoder, self.optimizer, self.progress)
            self._saved_step = self.progress.step

    def run(
        self,
        report: Callable[[StepReport], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step and return True, or until `stopped()`, with the state saved, and
        return False.
        """
        settings, progress = self.settings, self.progress
        while progress.step < settings.steps:
            if stopped():
                self.save()
                return False
            start = time.perf_counter()
            loss, tokens = self._step(progress.step)
            seconds = time.perf_counter() - start
            progress.step += 1
            progress.tokens += tokens
            progress.seconds += seconds
            last = progress.step == settings.steps
            evaluated = last or progress.step % settings.eval_every == 0
            if evaluated:
                progress.curve.append(self._evaluate(loss))
            if last or progress.step % settings.save_every == 0:
                self.save()
            entry = progress.curve[-1] if evaluated else None
            report(StepReport(progress.step, settings.steps, loss, tokens / seconds, entry))
        return True

    def _step(self, step: int) -> tuple[float, int]:
        """One update; returns the loss before it and the number of tokens it learned from."""
        inputs, targets = self._batch(step)
        self.decoder.train()
        with autocast(self.settings.dtype):
            logits = self._forward(inputs, step)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        balance = self.routers.take()
        value = loss.item()
        if not math.isfinite(value):
            raise OssiaError(f"the loss is {value} at step {step + 1}; {self._last_good()}")
        total = loss if balance is None else loss + self.settings.balance * balance
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), self.settings.clip)
        if not torch.isfinite(norm):
            raise OssiaError(
                f"the gradient is {norm.item()} at step {step + 1}; {self._last_good()}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        self.optimizer.step()
        return value, inputs.numel()

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        short = self.settings.steps - self.settings.long_steps
        return self._batches(step) if step < short else self._long(step - short)

    def _forward(self, inputs: Tensor, step: int) -> Tensor:
        if step < self.settings.steps - self.settings.mxfp4_steps:
            return self.decoder(inputs)
        packed = quantized.as_saved(self.decoder)
        return functional_call(self.decoder, packed, (inputs,))

    def _evaluate(self, loss: float) -> dict[str, float]:
        self.decoder.eval()
        result = bits_per_byte(self.decoder, self.held_out, self.settings.length)
        return {
            "step": self.progress.step,
            "seconds": round(self.progress.seconds, 1),
            "loss": loss,
            "held_out_bits_per_byte": result[""],
        }

    def _last_good(self) -> str:
        if self._saved_step is None:
            return "nothing was saved yet: start in another folder with a lower --learning-rate"
        return (
            f"the last good state is that of step {self._saved_step}, {self.file}: "
            "start in another folder with a lower --learning-rate"
        )


@contextmanager
def autocast(dtype: str) -> Iterator[None]:
    """Matrix products in bfloat16, or everything as it is."""
    with torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "float32"):
        yield
