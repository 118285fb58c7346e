"""The HTTP application: our routes and no others, one form of error, a bound on every body, a count of every request."""

import re
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attune.errors import Conflict, IllegalMove, InvalidRecord, RegistryError, RequestError, Unavailable
from serve import metrics
from serve.routes import chat, feedback, models, page, status, versions

log = structlog.get_logger()

ODD = re.compile(r"[^\w]")
"""What pydantic's own names of a value's readings have, and no field of ours."""
RETRY_AFTER_S, BUSY_S = "5", "2"
"""A dead engine is back after four or five seconds, and clients that obey give up after two tries."""


class BodyLimit:
    """Answers 413 before more of a body than the limit is read, whatever its headers say."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        messages: list[Message] = []
        size = int(declared) if declared.isdigit() else 0
        if size <= self.limit:
            size = await self._read(receive, messages)
        if size > self.limit:
            error = RequestError(f"The body is larger than the {self.limit} bytes that are accepted.", status=413, code="body_too_large")
            await JSONResponse(error.body(), status_code=413, headers={"connection": "close"})(scope, receive, send)
            return
        messages.reverse()

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive, messages: list[Message]) -> int:
        size, more = 0, True
        while more and size <= self.limit:
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            more = messages[-1].get("more_body", False)
        return size


def make_app(state: dict[str, Any]) -> FastAPI:
    """Return the application with everything that its routes need in `app.state`."""
    app = FastAPI(title="Attune", description="An LLM server that learns from the people who use it.", docs_url=None, redoc_url=None)
    for name, value in state.items():
        setattr(app.state, name, value)
    for routes in (chat, feedback, models, status, versions, page):
        app.include_router(routes.router)
    app.add_middleware(BodyLimit, limit=app.state.config.serve.max_body_bytes)
    app.middleware("http")(_observe)
    if origins := app.state.config.serve.allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"])
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(Unavailable, _unavailable)
    app.add_exception_handler(InvalidRecord, _invalid)
    app.add_exception_handler(RegistryError, _registry_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    return app


async def _observe(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    ident = request.headers.get("x-request-id", "")[:100] or uuid.uuid4().hex
    try:
        response = await call_next(request)
    except Exception as error:  # noqa: BLE001 (here, and not by a handler of the framework's: that would have uvicorn log the message too)
        response = _unexpected(request, error)
    route = request.scope.get("route")
    metrics.REQUESTS.labels(getattr(route, "path", "unknown"), response.status_code).inc()
    response.headers["x-request-id"] = ident
    return response


def _answer(error: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    error.message = error.message.encode("utf-8", "replace").decode()  # it may quote half of a surrogate pair
    challenge = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    return JSONResponse(error.body(), status_code=error.status, headers={**challenge, **(headers or {})})


async def _request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return _answer(error, {"retry-after": BUSY_S} if error.status == 503 else None)


async def _unavailable(request: Request, error: Exception) -> JSONResponse:
    text = f"{str(error).rstrip('.')}. This request was not carried out; what was acknowledged before is safe. Try again."
    response = _answer(RequestError(text, status=503, code="unavailable"))
    response.headers["retry-after"] = RETRY_AFTER_S
    return response


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    return _answer(RequestError(str(error)))


async def _registry_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, IllegalMove | Conflict):
        return _answer(RequestError(str(error), status=409, code="illegal_move" if isinstance(error, IllegalMove) else "conflict"))
    log.error("registry_failed", path=request.url.path, error=str(error))
    return _answer(RequestError("The registry cannot be read; the server's log says why.", status=500, code="registry_error"))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = max(error.errors(), key=lambda e: len(e["loc"]))  # of several readings of a value the one that came furthest
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "header", "path") and not ODD.search(str(part))]
    if first["type"] == "json_invalid":
        return _answer(RequestError("The body is not valid JSON.", code="invalid_json"))
    message = str(first["msg"]).removeprefix("Value error, ")
    named = ".".join(place) or None
    return _answer(RequestError(f"{named}: {message}" if named else message, param=named, code="invalid_value"))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"There is no route {request.method} {request.url.path}." if error.status_code in (404, 405) else str(error.detail)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    return _answer(RequestError(message, status=error.status_code, code=code), error.headers)


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # The places, not the message: that might quote what a person wrote.
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]]
    log.error("request_failed", path=request.url.path, error=type(error).__name__, places=places)
    return _answer(RequestError("The server failed to answer this request; its log says why.", status=500, code="internal_error"))
