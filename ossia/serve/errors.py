"""Errors in OpenAI's shape: what is wrong, with which parameter, under which status."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ossia.engine import ConstraintError
from ossia.engine.driver import QueueFull
from ossia.errors import Busy, DeviceLost, OssiaError
from ossia.serve.bodies import Invalid
from ossia.text import TooLong

MESSAGES = "/v1/messages"  # the paths of Anthropic's API
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
RETRY_SECONDS = 1  # until a client whose request found the queue full should try again

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """An error that the client is told of. param: the parameter's path, as in messages[0].role."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The error as the API writes it."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def anthropic_body(self) -> dict[str, Any]:
        """The error as Anthropic's API writes it."""
        kind = _ANTHROPIC.get(self.status)
        if kind is None:
            kind = "api_error" if self.status >= 500 else "invalid_request_error"
        error: dict[str, Any] = {"type": kind, "message": self.message}
        if self.code is not None:
            error["details"] = {"error_code": self.code}
        return {"type": "error", "error": error}

    def response(self, path: str) -> Response:
        """The HTTP response that carries it, to a request of that path."""
        headers = {**self.headers}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (429, 503):
            headers["Retry-After"] = str(RETRY_SECONDS)
        if self.status == 415:
            headers["Accept-Encoding"] = "gzip, deflate, zstd"
        body = self.anthropic_body() if path.startswith(MESSAGES) else self.body()
        return json_response(body, self.status, headers)


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON in ASCII, which can write whatever a client sent, lone surrogates too."""
    body = json.dumps(content, separators=(",", ":"))
    return Response(body, status, headers, media_type="application/json")


def refusal(error: OssiaError, parameters: Sequence[str]) -> ApiError:
    """What a request cannot have: its parameter is named if the message begins with one."""
    if isinstance(error, Busy):
        code = "queue_full" if isinstance(error, QueueFull) else "busy"
        return ApiError(429, f"the server is busy: {error}", code=code)
    if isinstance(error, DeviceLost):
        return device_lost(error)
    if isinstance(error, TooLong):
        return ApiError(400, str(error), code="context_length_exceeded")
    found = re.match(r"[a-z_]+(\[\d+\]|\.[a-z_]+)*", str(error))
    named = found is not None and re.split(r"[.\[]", found[0])[0] in parameters
    return ApiError(400, str(error), param=found[0] if found and named else None)


def device_lost(error: DeviceLost) -> ApiError:
    """Nothing can be answered until the server has been started again."""
    return ApiError(503, str(error), code="device_lost")


def failure(error: Exception) -> ApiError:
    """What went wrong while an answer was made."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ConstraintError) and isinstance(error.__cause__, OssiaError | None):
        # The form is the client's. A 5xx would have clients try again, to fail again as late.
        return ApiError(400, str(error), code="constraint_failed")
    if isinstance(error, DeviceLost):
        return device_lost(error)
    if isinstance(error, OssiaError):
        return ApiError(500, str(error), code="generation_failed")
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says why", code="internal_error")


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Have `app`, which has these routes, answer every error in this shape."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> Response:
        return error.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return _validation(error.errors()).response(request.url.path)

    @app.exception_handler(Invalid)
    async def _invalid_too(request: Request, error: Invalid) -> Response:
        return _validation(error.errors).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        message, headers = str(error.detail), dict(error.headers or {})
        if error.status_code in (404, 405):
            message = f"there is no {request.method} {request.url.path}; see /openapi.json"
        path = request.url.path
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(routes, path))
        return ApiError(error.status_code, message, headers=headers).response(path)

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        return failure(error).response(request.url.path)


def _methods(routes: Sequence[BaseRoute], path: str) -> list[str]:
    """The methods that a path takes. Several routes may have it, of which the framework names one
    only.
    """
    fitting = (route for route in routes if isinstance(route, Route))
    return sorted({m for r in fitting if r.path_regex.match(path) for m in r.methods or ()})


def _validation(errors: Sequence[Any]) -> ApiError:
    """The error of the value that went furthest, or of a list that is too long or too short: of a
    union's members, the one that was meant.
    """
    error = max(errors, key=lambda error: (len(error["loc"]), error["type"].startswith("too_")))
    param = _path(error["loc"][1:])
    match error["type"]:
        case "extra_forbidden":
            return ApiError(
                400, f"Unsupported parameter: '{param}'.", param=param, code="unsupported_parameter"
            )
        case "missing" if param:
            message = f"Missing required parameter: '{param}'."
            return ApiError(400, message, param=param, code="missing_required_parameter")
        case "json_invalid":
            return ApiError(400, f"the body is not JSON: {error['ctx']['error']}")
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error" and not param:  # of several parameters, the first is named
        return ApiError(400, message, param=message.partition(" ")[0], code="invalid_value")
    if not param:
        return ApiError(400, "the body must be a JSON object, sent as application/json")
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")


def _path(steps: Sequence[Any]) -> str:
    """messages[0].role, without pydantic's names of the members of unions."""
    path = ""
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"[a-z_]\w*", step) and step not in ("str", "int", "float", "bool"):
            path += f".{step}" if path else step
        elif not path:
            path = str(step)
    return path
