"""What happened: the lives of followed objects with their pictures, as a list, one by one, and as it happens."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response, WebSocket
from pydantic import AwareDatetime, BaseModel, Field

from server.analytics.event_store import EventFilter
from server.delivery.auth import InPrincipal
from server.delivery.context import Context, InContext, context_of
from server.delivery.documented import documented, json_response
from server.delivery.ports import InvalidField, NoPicture, ServerError
from server.delivery.subscriptions import InStreams, serve_websocket
from server.results import EventKind, EventMessage, Message, TrackEvent
from server.store import StoreError

router = APIRouter(tags=["events"])

_ID = r"^[0-9a-f]{17}$"
_PAGE = 50
_LARGEST_PAGE = 500


class EventNotFound(ServerError):
    """There is no event of this id; it may have been removed by its age."""

    status, code = 404, "event_not_found"


class EventPage(BaseModel):
    """Events, the newest first."""

    events: list[TrackEvent]
    next: str | None = Field(description="`cursor` of the next page; null on the last one.")


class Changes(BaseModel):
    """What happened, in order."""

    changes: list[EventMessage]
    after: int = Field(description="Ask with it for what comes next.")


class EventDetail(BaseModel):
    """One event and all that happened to it, in order."""

    event: TrackEvent
    changes: list[EventMessage]


EventId = Annotated[str, Path(pattern=_ID, description="Id of an event.")]
Classes = Annotated[
    list[str], Query(alias="class", default_factory=list, max_length=256, description="Only these classes; repeatable.")
]
Kind = Annotated[EventKind | None, Query(description="Only events to which this happened.")]
Zone = Annotated[str | None, Query(max_length=64, description="Only objects that were in this zone.")]
Line = Annotated[str | None, Query(max_length=64, description="Only objects that crossed this line.")]
Limit = Annotated[int, Query(ge=1, le=_LARGEST_PAGE, description="So many at most.")]


@router.get("/events", response_model=EventPage, responses=documented(InvalidField, StoreError))
async def list_events(
    context: InContext,
    streams: InStreams,
    classes: Classes,
    kind: Kind = None,
    zone: Zone = None,
    line: Line = None,
    after: Annotated[AwareDatetime | None, Query(description="Seen at this time or later (RFC 3339).")] = None,
    before: Annotated[AwareDatetime | None, Query(description="Begun at this time or earlier.")] = None,
    cursor: Annotated[str | None, Query(pattern=_ID, description="`next` of the page before.")] = None,
    limit: Limit = _PAGE,
) -> Response:
    """Lives of followed objects, the newest first."""
    wanted = EventFilter(
        streams, frozenset(classes) if classes else None, zone, line, kind, _unix(after), _unix(before), cursor
    )
    events = await context.runtime.journal.store.events(wanted, limit + 1)
    following = events[limit - 1]["id"] if len(events) > limit else None
    return json_response(EventPage.model_construct(events=events[:limit], next=following).model_dump_json())


@router.get("/changes", response_model=Changes, responses=documented(InvalidField, StoreError))
async def changes(
    context: InContext,
    streams: InStreams,
    after: Annotated[int, Query(ge=0, lt=1 << 63, description="Number of the last change that is known.")] = 0,
    limit: Limit = _PAGE,
) -> Response:
    """What happened after a change that is known, in order, over restarts: for those who must miss nothing."""
    found = await context.runtime.journal.store.changes(after, limit)
    last = found[-1]["id"] if found else after
    mine = [message for message in found if streams is None or message["stream"] in streams]
    return json_response(Changes.model_construct(changes=mine, after=last).model_dump_json())


@router.get(
    "/events/{event_id}", response_model=EventDetail, responses=documented(EventNotFound, InvalidField, StoreError)
)
async def get_event(event_id: EventId, context: InContext, principal: InPrincipal) -> Response:
    """One event and all that happened to it."""
    event = await _visible(context, principal, event_id)
    happened = await context.runtime.journal.store.history(event_id)
    return json_response(EventDetail.model_construct(event=event, changes=happened).model_dump_json())


@router.delete("/events/{event_id}", status_code=204, responses=documented(EventNotFound, InvalidField, StoreError))
async def delete_event(event_id: EventId, context: InContext, principal: InPrincipal) -> Response:
    """Forget an event, its picture and what happened to it. One that is still going on comes back with its next
    change."""
    await _visible(context, principal, event_id)
    await context.runtime.journal.store.delete(event_id)
    return Response(status_code=204)


@router.get(
    "/events/{event_id}/snapshot.jpg",
    response_class=Response,
    responses={
        200: {
            "description": "The picture.",
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        },
        **documented(EventNotFound, NoPicture, InvalidField, StoreError),
    },
)
async def event_snapshot(event_id: EventId, context: InContext, principal: InPrincipal) -> Response:
    """The object and a little around it, from the event's best frame so far."""
    await _visible(context, principal, event_id)
    jpeg = await context.runtime.journal.store.snapshot(event_id)
    if jpeg is None:
        raise NoPicture(f"Event {event_id!r} has no picture.")
    return Response(jpeg, 200, {"Cache-Control": "no-store"}, "image/jpeg")


@router.websocket("/events")
async def events_websocket(
    websocket: WebSocket,
    streams: InStreams,
    classes: Classes,
    kind: Annotated[
        list[EventKind], Query(default_factory=list, max_length=16, description="Only these kinds; repeatable.")
    ],
    zone: Zone = None,
) -> None:
    """Everything that happens to followed objects, from now on."""
    context = await context_of(websocket)
    accepts = _accepts(frozenset(classes), frozenset(kind), zone)
    await serve_websocket(websocket, context, streams, hub=context.runtime.journal.feed, accepts=accepts)


def _accepts(
    classes: frozenset[str], kinds: frozenset[EventKind], zone: str | None
) -> Callable[[Message], bool] | None:
    if not classes and not kinds and zone is None:
        return None

    def accepts(message: Message) -> bool:
        if message["type"] != "event":
            return True
        event = message["event"]
        return (
            (not classes or event["class"] in classes)
            and (not kinds or message["kind"] in kinds)
            and (zone is None or zone in event["zones"])
        )

    return accepts


async def _visible(context: Context, principal: InPrincipal, event_id: str) -> TrackEvent:
    """EventNotFound also for events of streams that the caller may not see."""
    event = await context.runtime.journal.store.event(event_id)
    if event is None or not principal.may_see(event["stream"]):
        raise EventNotFound(f"There is no event {event_id!r}.")
    return event


def _unix(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
