"""What OpenAPI says of problems, and small helpers for answers."""

from __future__ import annotations

import http
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from server.delivery import permissions
from server.delivery.auth import COOKIE
from server.delivery.ports import ServerError
from server.delivery.problems import (
    MEDIA_TYPE,
    Forbidden,
    HostNotAllowed,
    OriginNotAllowed,
    Problem,
    TooManyAttempts,
    Unauthorized,
)

Responses = dict[int | str, dict[str, Any]]


def json_response(body: str | bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON that is encoded already."""
    return Response(body, status, headers, "application/json")


def documented(*errors: type[ServerError], body: bool = False) -> Responses:
    """OpenAPI responses of problems. `body`: the call reads one, which may be broken or too large."""
    kinds = [(e.status, e.code, _sentence(e)) for e in errors]
    if body:
        kinds += [(400, "bad_request", "The body cannot be read."), (413, "body_too_large", "The body is too large.")]
    responses: Responses = {}
    for status, code, sentence in kinds:
        phrase = http.HTTPStatus(status).phrase
        example = {"type": "about:blank", "title": phrase, "status": status, "code": code, "detail": sentence}
        response = responses.setdefault(
            status,
            {
                "description": phrase,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        response["content"][MEDIA_TYPE]["examples"][code] = {"summary": sentence, "value": example}
    return responses


def install_openapi(app: FastAPI, *, token: bool) -> None:
    """Complete what FastAPI generates: the Problem schema, who is let in, no answers that are never given."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes), token
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], token: bool) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    nested = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(nested.pop("$defs", {}))
    schemas["Problem"] = nested
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    at_the_door = documented(HostNotAllowed, OriginNotAllowed)
    refusals = documented(HostNotAllowed, OriginNotAllowed, Forbidden, Unauthorized, TooManyAttempts)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            generated = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if generated.get("$ref", "").endswith("/HTTPValidationError"):
                del responses["422"]  # our own problems are documented where a call can give them
            if path in permissions.PROBES:
                continue
            role = permissions.TABLE[method.upper(), path].role
            documents = at_the_door if role is None else refusals
            responses.update({str(status): response for status, response in documents.items()})
            if role is not None:
                operation["x-role"] = role.label
                if token:
                    operation["security"] = [{"token": []}, {"session": []}]
    if token:
        components["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
        }
    return document


def _sentence(error: type[ServerError]) -> str:
    return " ".join((error.__doc__ or error.code).split())
