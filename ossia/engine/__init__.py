"""The engine: ids in, ids out, many requests decoded together over one paged cache."""

from ossia.engine.engine import Engine
from ossia.engine.request import (
    Constraint,
    Failure,
    FinishReason,
    Request,
    RequestError,
    Result,
    SamplingParams,
    TokenOutput,
)
from ossia.engine.sampler import ConstraintError, LogitsError

__all__ = [
    "Constraint",
    "ConstraintError",
    "Engine",
    "Failure",
    "FinishReason",
    "LogitsError",
    "Request",
    "RequestError",
    "Result",
    "SamplingParams",
    "TokenOutput",
]
