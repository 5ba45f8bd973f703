"""The application: the endpoints, behind the gate, and the document that describes them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from starlette.responses import Response

import ossia
from ossia.serve import chat, completions, errors, page, status, tokens
from ossia.serve.chat_wire import ChatCompletionChunk
from ossia.serve.entrance import Rules, entrance
from ossia.serve.gate import Asgi
from ossia.serve.messages import routes as messages
from ossia.serve.responses import routes as responses
from ossia.serve.responses.store import ResponseStore, Store
from ossia.serve.service import Disconnected, Service
from ossia.serve.wire import ErrorBody

ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorBody, "description": "What is wrong, in OpenAI's shape."}
}


def application(
    service: Service,
    rules: Rules = Rules(),
    *,
    store: Store | None = None,
    documented_keys: bool = False,
) -> Asgi:
    """The ASGI application over a service. store: where responses are kept; in memory if None.
    documented_keys: something before this application asks for keys.
    """
    keys = rules.keys or documented_keys
    app = FastAPI(
        title="ossia",
        version=ossia.__version__,
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False))] if keys else [],
    )

    @app.exception_handler(Disconnected)
    async def _nobody_listens(_request: Request, _error: Exception) -> Response:
        return Response(status_code=499)

    routers = [module.routes(service) for module in (chat, completions, messages, tokens, status)]
    routers.append(responses.routes(service, store or ResponseStore()))
    for router in routers:
        app.include_router(router, responses=ERRORS)
    routers.append(page.routes())
    app.include_router(routers[-1])
    app.openapi = lambda: _document(app, service.name)
    errors.install(app, [route for router in routers for route in router.routes])
    return entrance(app, rules, service.metrics)


def _document(app: FastAPI, model: str) -> dict[str, Any]:
    """The OpenAPI document, with the parts of streams, which no route returns by themselves, and
    the one name that a model has here.
    """
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        chunk = ChatCompletionChunk.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas |= {**chunk.pop("$defs"), ChatCompletionChunk.__name__: chunk}
        for schema in schemas.values():
            if (name := schema.get("properties", {}).get("model")) is not None:
                name["enum"] = [model, None] if "anyOf" in name else [model]
        app.openapi_schema = document
    return app.openapi_schema
