"""The web application: routes, who is let in, how errors look. All it knows of the server is `RuntimePort`."""

from __future__ import annotations

from fastapi import FastAPI

from server import __version__
from server.delivery import detect, detections, documented, health, problems, snapshots, streams
from server.delivery.auth import Guard
from server.delivery.context import Context
from server.delivery.limits import BodyLimit
from server.delivery.ports import RuntimePort
from server.settings import ServerSettings

_DESCRIPTION = """Cameras in, detections out.

Detections are pushed over WebSocket at `/detections` (all streams) and `/streams/{id}/detections`, one JSON message a
frame: `result`, `gap` (messages that a slow client missed) and `state`. Query: `stream`, `class`, `min_confidence`,
`zone`. The same as Server-Sent Events at `/detections/sse`. Errors are RFC 9457 problems with a stable `code`.
"""


def create_app(runtime: RuntimePort, settings: ServerSettings) -> FastAPI:
    """The application for one running server. `app.state.context.stop()` ends its subscriptions."""
    app = FastAPI(title="yolov9-server", version=__version__, description=_DESCRIPTION)
    app.state.context = Context(runtime, settings)
    problems.install(app)
    documented.install_openapi(app, token=settings.token is not None)
    for room in (health, streams, snapshots, detect, detections):  # detections last: it catches unknown WebSocket paths
        app.include_router(room.router)
    app.add_middleware(BodyLimit)
    app.add_middleware(Guard, token=settings.token)  # added last: outermost
    return app
