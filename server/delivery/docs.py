"""`/docs`: Swagger UI for this interface, served from here: it works without internet and under a strict CSP.

The scripts are those that the package fastapi-offline carries.
"""

from __future__ import annotations

import hashlib
import html
import importlib.resources
from functools import lru_cache
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from server.delivery.headers import csp

router = APIRouter(include_in_schema=False)

_CSP = csp(style="'self' 'unsafe-inline'")
"""Swagger UI sets styles on its elements."""
_CACHED = {"Cache-Control": "private, max-age=86400"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="docs/swagger-ui.css?{version}">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js?{version}"></script>
<script src="docs/start.js?{version}"></script>
</body>
</html>
"""
_START = b"""SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  deepLinking: true,
});
"""


class _File(NamedTuple):
    content: bytes
    media_type: str


@lru_cache
def _files() -> dict[str, _File]:
    static = importlib.resources.files("fastapi_offline") / "static"
    return {
        "start.js": _File(_START, "text/javascript"),
        "swagger-ui-bundle.js": _File((static / "swagger-ui-bundle.js").read_bytes(), "text/javascript"),
        "swagger-ui.css": _File((static / "swagger-ui.css").read_bytes(), "text/css"),
    }


@lru_cache
def _version() -> str:
    """In the addresses, since browsers keep the files."""
    return hashlib.sha256(b"".join(file.content for file in _files().values())).hexdigest()[:8]


@router.get("/docs")
async def docs(request: Request) -> Response:
    """This page."""
    page = _PAGE.format(title=html.escape(request.app.title), version=_version())
    return Response(page, 200, {"Content-Security-Policy": _CSP}, "text/html")


@router.get("/docs/{file}")
async def docs_file(file: str) -> Response:
    """Its scripts and styles."""
    found = _files().get(file)
    if found is None:
        raise HTTPException(404)
    return Response(found.content, 200, _CACHED, found.media_type)
