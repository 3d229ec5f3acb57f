"""The page at `/`, and its scripts and styles below `/web`. They are read once and kept, plain and compressed.

Public, as they hold nothing of this server: the page itself asks for a token where one is needed.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "webmanifest": "application/manifest+json",
}
_PAGE = "index.html"


class Asset(NamedTuple):
    content: bytes
    compressed: bytes
    media_type: str
    etag: str


@cache
def assets() -> Mapping[str, Asset]:
    """Path below `server/web` -> file. Files of other kinds are not served."""
    return {path: _asset(path, file.read_bytes()) for path, file in _files(resources.files("server") / "web")}


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return _answer(request, assets()[_PAGE])


@router.get("/web/{path:path}")
async def asset(request: Request, path: str) -> Response:
    """A script, a style, a picture of the page."""
    found = assets().get(path)
    if found is None:
        raise HTTPException(404)
    return _answer(request, found)


def _answer(request: Request, asset: Asset) -> Response:
    """304 to a browser that has this very file: after an update no old script meets a new page."""
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    known = request.headers.get("if-none-match", "")
    if asset.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.compressed, 200, headers | {"Content-Encoding": "gzip"}, asset.media_type)
    return Response(asset.content, 200, headers, asset.media_type)


def _asset(path: str, content: bytes) -> Asset:
    etag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    return Asset(content, gzip.compress(content, mtime=0), _MEDIA_TYPES[path.rpartition(".")[2]], etag)


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _MEDIA_TYPES:
            yield prefix + entry.name, entry
