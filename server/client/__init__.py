"""Typed client of a running server: results as they come, over lost connections, and the rest of the interface.

async with Client("http://127.0.0.1:8080", token="...") as client:
    async for message in client.detections(stream="door", classes=["person"]):
        if message["type"] == "result":
            print(message["seq"], [d["class"] for d in message["detections"]])
"""

from server.client.client import Client
from server.client.errors import (
    ApiError,
    ClientError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Unauthorized,
    Unreachable,
)
from server.client.outages import Reconnected

__all__ = [
    "ApiError",
    "Client",
    "ClientError",
    "Conflict",
    "Forbidden",
    "Invalid",
    "NotFound",
    "Reconnected",
    "Unauthorized",
    "Unreachable",
]
