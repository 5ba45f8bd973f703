"""What the server has and how it is: /v1/models, /health, /ready and /metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from ossia.serve.errors import ApiError, device_lost
from ossia.serve.service import Service
from ossia.serve.wire import Wire


class Model(Wire):
    """max_model_len: the most tokens of a text, prompt and answer."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["ossia"] = "ossia"
    max_model_len: int


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[Model]


class Status(Wire):
    status: Literal["ok"] = "ok"


def routes(service: Service) -> APIRouter:
    """The endpoints over a service."""
    router = APIRouter()

    def model() -> Model:
        return Model(id=service.name, created=service.created, max_model_len=service.max_length)

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[model()])

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Model:
        service.check_model(name)
        return model()

    @router.get("/health")
    async def health() -> Status:
        """The process answers, and no GPU that it needs is lost."""
        if (fault := service.llm.stats().fault) is not None:
            raise device_lost(fault)
        return Status()

    @router.get("/ready")
    async def ready() -> Status:
        """It takes requests: the model is there, and the queue has room."""
        stats = service.llm.stats()
        if stats.fault is not None:
            raise device_lost(stats.fault)
        if stats.engine is None or stats.unfinished >= stats.max_queue:
            reason = "the model is closed" if stats.engine is None else "the queue is full"
            raise ApiError(503, reason, code="not_ready")
        return Status()

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """The figures that Prometheus reads."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
