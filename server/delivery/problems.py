"""Every error of the REST interface as RFC 9457 `application/problem+json`, with a stable `code`.

Nothing of an error's inside gets out: no input (it may be a password), no traceback.
"""

from __future__ import annotations

import http
import math
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from server.delivery.headers import SECURITY
from server.delivery.ports import InvalidField, ServerError

MEDIA_TYPE = "application/problem+json"
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
"""Codes of the errors that are raised by the web framework, or through it."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_MAX_FIELD = 200
"""Characters of a field's name that are repeated: an unknown field is named by the client."""


class FieldError(BaseModel):
    """One field that does not fit."""

    field: str = Field(description="Name of the field or parameter; parts of nested ones are joined by dots.")
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details. Programs go by `code`, people read `detail`."""

    type: str = Field("about:blank", description="Always about:blank: `code` tells problems apart.")
    title: str = Field(description="What the status means.")
    status: int
    code: str = Field(description="Stable name of the problem.")
    detail: str = Field(description="What happened, in a sentence.")
    errors: list[FieldError] | None = Field(None, description="The fields at fault, where there are any.")


class NotReady(ServerError):
    """No model, or inference does not work; `detail` says why, `errors` name the checks that fail."""

    status, code = 503, "not_ready"

    def __init__(self, detail: str, failing: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.failing = list(failing)


class NoResult(ServerError):
    """The stream has no result yet."""

    status, code = 404, "no_result"


class Unauthorized(ServerError):
    """The token is missing or wrong."""

    status, code = 401, "unauthorized"


class TooManyAttempts(ServerError):
    """Too many wrong tokens came from the client's address."""

    status, code = 429, "too_many_attempts"


class Forbidden(ServerError):
    """The token is right, but its role or its streams do not allow this."""

    status, code = 403, "forbidden"


class HostNotAllowed(ServerError):
    """The server does not answer under this name: without a token under this machine's loopback names only."""

    status, code = 403, "host_not_allowed"


class OriginNotAllowed(ServerError):
    """Pages of other sites are not answered."""

    status, code = 403, "origin_not_allowed"


class UnsupportedMediaType(ServerError):
    status, code = 415, "unsupported_media_type"


class RequestTimeout(ServerError):
    """The body did not come in time."""

    status, code = 408, "request_timeout"


def problem_response(
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    problem = Problem(
        title=http.HTTPStatus(status).phrase, status=status, code=code, detail=detail, errors=list(errors) or None
    )
    return Response(problem.model_dump_json(exclude_none=True), status, headers, MEDIA_TYPE)


def response_of(error: ServerError) -> Response:
    """The answer to an error of ours."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(math.ceil(error.retry_after_s), 0))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="yolov9-server"'
    if isinstance(error, RequestTimeout):
        headers["Connection"] = "close"  # the rest of the body is not waited for
    detail, errors = error.detail, error.failing if isinstance(error, NotReady) else []
    if isinstance(error, InvalidField):
        errors = [FieldError(field=error.field, message=error.detail)]
        detail = f"{error.field}: {error.detail}"
    return problem_response(error.status, error.code, detail, errors=errors, headers=headers)


def install(app: FastAPI) -> None:
    """Make problems of everything that can go wrong in `app`. A WebSocket gets them as the answer to its handshake."""

    async def on_server_error(connection: HTTPConnection, error: Exception) -> Response:
        assert isinstance(error, ServerError)
        return response_of(error)

    async def on_invalid(connection: HTTPConnection, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
        return _invalid(error)

    async def on_http(connection: HTTPConnection, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _framework(connection.scope, error, app.router.routes)

    async def on_bug(connection: HTTPConnection, error: Exception) -> Response:
        detail = "Something went wrong inside the server; its log says what."
        return problem_response(500, ServerError.code, detail, headers=SECURITY)  # made outside of all middleware

    async def on_gone(connection: HTTPConnection, error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it; it is no fault of the server's, so nothing is logged

    app.add_exception_handler(ServerError, on_server_error)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(WebSocketRequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)


def _invalid(error: RequestValidationError | WebSocketRequestValidationError) -> Response:
    """422 that names the fields. The validator's own report would repeat the input."""
    errors = []
    for fault in error.errors():
        where, message = [str(part) for part in fault["loc"]], str(fault["msg"]).removeprefix("Value error, ")
        if fault["type"] == "json_invalid":
            where, message = ["body"], "is not JSON"
        elif fault["type"] == "extra_forbidden":
            message = "is not known here"
        if len(where) == 1 and ": " in message:  # from a validator of the whole: "url: ..."
            field, _, message = message.partition(": ")
        else:
            field = ".".join(where[1:] or where)
        field = field[:_MAX_FIELD].encode("utf-8", "replace").decode()
        errors.append(FieldError(field=field, message=message))
    detail = "; ".join(f"{e.field}: {e.message}" for e in errors)
    return problem_response(InvalidField.status, InvalidField.code, detail, errors=errors)


def _framework(scope: Scope, error: HTTPException, routes: Sequence[BaseRoute]) -> Response:
    """What the web framework raises: unknown paths and methods, bodies that cannot be read."""
    code, detail = _CODES.get(error.status_code, "http_error"), str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        detail = "There is nothing at this path."
    elif error.status_code == 405:
        allowed = [m for m in _METHODS if any(r.matches({**scope, "method": m})[0] is Match.FULL for r in routes)]
        headers["Allow"] = ", ".join(allowed)
        detail = f"This path answers {headers['Allow']} only."
    return problem_response(error.status_code, code, detail, headers=headers)
