"""The engine: ids in, ids out, many requests decoded together over one paged cache."""

from ossia.engine.engine import Engine
from ossia.engine.request import (
    Failure,
    FinishReason,
    Request,
    Result,
    SamplingParams,
    TokenOutput,
)
from ossia.engine.sampler import LogitsError

__all__ = [
    "Engine",
    "Failure",
    "FinishReason",
    "LogitsError",
    "Request",
    "Result",
    "SamplingParams",
    "TokenOutput",
]
