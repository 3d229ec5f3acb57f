"""The web application: routes, who is let in, how errors look. All it knows of the server is `RuntimePort`."""

from __future__ import annotations

from fastapi import FastAPI

from server import __version__
from server.access.registry import Access
from server.delivery import (
    configuration,
    detect,
    detections,
    docs,
    documented,
    events,
    health,
    models,
    permissions,
    problems,
    session,
    snapshots,
    streams,
    web,
)
from server.delivery.auth import Doorkeeper, Guard
from server.delivery.context import Context
from server.delivery.headers import Cors, SecurityHeaders
from server.delivery.limits import BodyLimit
from server.delivery.ports import RuntimePort
from server.reload import Reloader
from server.settings import ServerSettings

_DESCRIPTION = """Cameras in, detections out.

Detections are pushed over WebSocket at `/detections` (all streams) and `/streams/{id}/detections`, one JSON message a
frame: `result`, `gap` (messages that a slow client missed) and `state`. Query: `stream`, `class`, `min_confidence`,
`zone`. The same as Server-Sent Events at `/detections/sse`. What happens to followed objects is pushed at `/events`,
one message of type `event` each; query: `stream`, `class`, `kind`, `zone`. Errors are RFC 9457 problems with a stable
`code`.
"""


def create_app(runtime: RuntimePort, settings: ServerSettings, reloader: Reloader | None = None) -> FastAPI:
    """The application for one running server. `app.state.context.stop()` ends its subscriptions.

    AccessError if there is a file of tokens that cannot be used.
    """
    access = Access.of(settings)
    doorkeeper = Doorkeeper(access)
    app = FastAPI(title="yolov9-server", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.context = Context(runtime, settings, access, reloader)
    app.state.doorkeeper = doorkeeper
    problems.install(app)
    documented.install_openapi(app, token=not access.open)
    # detections last: it catches unknown WebSocket paths
    for room in (health, web, session, docs, streams, models, snapshots, detect, events, configuration, detections):
        app.include_router(room.router)
    app.add_middleware(BodyLimit, max_model_bytes=settings.model_max_mb << 20)
    app.add_middleware(Guard, access=access, doorkeeper=doorkeeper, settings=settings)
    # Outside of the guard: a browser asks whether it may send a token without sending one.
    app.add_middleware(Cors, settings=settings)
    app.add_middleware(SecurityHeaders, settings=settings)  # added last: outermost
    permissions.check(app)
    return app
