"""The engine: ids in, ids out, many requests decoded together over one paged cache."""

from ossia.engine.driver import Driver, DriverStats, QueueFull
from ossia.engine.engine import Engine, EngineStats
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
from ossia.engine.worker import Ticket

__all__ = [
    "Constraint",
    "ConstraintError",
    "Driver",
    "DriverStats",
    "Engine",
    "EngineStats",
    "Failure",
    "FinishReason",
    "LogitsError",
    "QueueFull",
    "Request",
    "RequestError",
    "Result",
    "SamplingParams",
    "Ticket",
    "TokenOutput",
]
