"""Speeds that `ossia bench cpu` measured, each beside its bound on the machine of that run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ossia.config import ModelConfig
from ossia.errors import OssiaError
from ossia.insight.compare import INT8_ELEMENT
from ossia.insight.counts import bytes_by_part, kv_bytes
from ossia.insight.facts import Model
from ossia.insight.units import digits, whole

HEAD = ("model", "batch", "tokens/s measured", "at most", "share", "on")
_TEXT = 48  # tokens of a text while it is decoded: a prompt of 32 and half of what follows


@dataclass(frozen=True)
class Point:
    """Tokens per second of `batch` sequences together, measured and at most."""

    model: str
    machine: str
    precision: str
    batch: int
    tokens_per_second: float
    bound: float

    @property
    def share(self) -> float:
        return self.tokens_per_second / self.bound

    @property
    def cells(self) -> list[str]:
        """Its line of a table with the columns `HEAD`."""
        return [
            self.model,
            whole(self.batch),
            digits(self.tokens_per_second),
            digits(self.bound),
            f"{100 * self.share:.0f} %",
            f"{self.machine}; {self.precision}",
        ]


def points(models: Sequence[Model], record: Mapping[str, Any], source: str) -> list[Point]:
    """What a record of `ossia bench cpu --json` says of any of the models; `source` names it in
    messages. The bound is by the highest bandwidth that was measured beside the model in that run.

    Raises OssiaError for anything else.
    """
    try:
        name = str(record["model"]).removesuffix(" with random weights")
        model = next((model for model in models if model.name == name), None)
        if model is None:
            return []
        speed = record["run"]["speed"]
        bandwidth = float(speed["read_bytes_per_second"]["most"])
        config = replace(model.config, dtype=record["dtype"])
        dense = record["dense"] is not None
        return [
            Point(
                name,
                f"{record['machine']['processor']}, {record['machine']['threads']} threads",
                f"{record['dtype']}, dense weights in int8" if dense else record["dtype"],
                int(decoding["batch"]),
                float(decoding["tokens_per_second"]["median"]),
                _bound(config, int(decoding["batch"]), bandwidth, dense=dense),
            )
            for decoding in speed["decoding"]
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise OssiaError(f"{source} is not what `ossia bench cpu --json` prints") from error


def _bound(config: ModelConfig, batch: int, bandwidth: float, *, dense: bool) -> float:
    """By memory alone: a run does not say how fast its machine multiplies."""
    weights = bytes_by_part(config, batch, element_bytes=INT8_ELEMENT if dense else None)
    return batch * bandwidth / (sum(weights.values()) + batch * kv_bytes(config, _TEXT))
