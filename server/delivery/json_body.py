"""What a JSON body must be before anything looks into it: said to be JSON, and not nested deeper than it need be."""

from __future__ import annotations

import re
from itertools import accumulate

from starlette.exceptions import HTTPException
from starlette.requests import Request

from server.delivery.problems import UnsupportedMediaType

MAX_DEPTH = 32
"""Validators and encoders recurse. Each has a limit of its own between 200 and 1,000, and fails in its own way."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.S)
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


async def require_json(request: Request) -> None:
    """For `Depends`: 415 instead of a puzzling 422 for what curl sends if it is not told better; 400 if too deep."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise UnsupportedMediaType("The body must be sent with Content-Type: application/json.")
    if depth(await request.body()) > MAX_DEPTH:
        raise HTTPException(400, f"The JSON is nested deeper than {MAX_DEPTH} levels.")


def depth(body: bytes) -> int:
    """Most brackets that are open at once, without parsing: what is not JSON gets some number too."""
    bare = _STRING.sub(b"", body)
    return max(accumulate((_STEPS[byte] for byte in bare if byte in _STEPS), initial=0))
