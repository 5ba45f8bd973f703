"""The engine: ids in, ids out, many requests decoded together over one paged cache."""

from ossia.engine.driver import Driver, DriverStats, QueueFull
from ossia.engine.engine import Engine, EngineStats
from ossia.engine.request import (
    Constraint,
    Failure,
    FinishReason,
    Output,
    PromptOutput,
    Request,
    RequestError,
    Result,
    SamplingParams,
    TokenLogprob,
    TokenOutput,
)
from ossia.engine.sampler import LogitsError
from ossia.engine.sampler_state import ConstraintError
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
    "Output",
    "PromptOutput",
    "QueueFull",
    "Request",
    "RequestError",
    "Result",
    "SamplingParams",
    "Ticket",
    "TokenLogprob",
    "TokenOutput",
]
