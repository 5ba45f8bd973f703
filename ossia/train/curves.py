"""A run's curves for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from ossia.errors import OssiaError
from ossia.train.loop import StepReport


class Curves:
    """Writes each step's report into a folder that `tensorboard --logdir` shows."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OssiaError(
                "--tensorboard needs a package of its own: pip install 'ossia[tensorboard]'"
            ) from error
        try:
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            raise OssiaError(f"--tensorboard {folder}: {error.strerror or error}") from error

    def add(self, report: StepReport) -> None:
        """Add one point per figure of the step."""
        figures = {
            "train/loss": report.loss,
            "train/gradient_norm": report.gradient_norm,
            "train/learning_rate": report.learning_rate,
            "train/tokens_per_second": report.tokens_per_second,
        }
        if report.balance is not None:
            figures["experts/balance_loss"] = report.balance
        if report.evaluation is not None:
            for name, value in report.evaluation.items():
                if name.startswith("held_out_"):
                    figures[f"held_out/{name.removeprefix('held_out_')}"] = value
            for layer, shares in report.evaluation.get("expert_shares", {}).items():
                for expert, share in enumerate(shares):
                    figures[f"experts_layer_{layer}/{expert}"] = share
        for name, value in figures.items():
            self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        """Flush what is not written yet."""
        self._writer.close()
