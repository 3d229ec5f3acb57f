"""Messages go out to all who listen: encoded once, and no listener can hold up another or the server.

A message is encoded once for each distinct selection of content, however many clients there are. Each subscriber has
a queue of its own, bounded in messages and bytes; a slow one loses its oldest messages and is told how many of which
stream (`gap`). For each subscriber and stream: messages got + `missed` = messages published, to the message. A change
of state that is pushed out is kept back and told later, unless a newer one pushes it out: nobody believes in a state
of long ago.

Knows no sockets: whoever sends is woken and takes what is next (`Subscriber.pop`). One event loop, no locks.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from server.results import Detection, Gap, Message, Result, State

log = logging.getLogger("yolov9.delivery")

SLOW_CLIENT = "slow_client"
REMOVED = "removed"
"""`reason` of the last state message of a stream."""
NORMAL_CLOSURE = 1000
GOING_AWAY = 1001
INTERNAL_ERROR = 1011

_encode = msgspec.json.Encoder().encode


class HubMetrics(Protocol):
    def observe_delivery(self, seconds: float) -> None: ...
    def messages_dropped(self, reason: str, count: int = 1) -> None: ...


class Selection(NamedTuple):
    """Which detections of a result a client wants. Results are sent even if none is left: one message a frame."""

    classes: frozenset[str] | None = None
    min_confidence: float = 0.0
    zone: str | None = None

    def wants(self, detection: Detection) -> bool:
        return (
            detection["confidence"] >= self.min_confidence
            and (self.classes is None or detection["class"] in self.classes)
            and (self.zone is None or self.zone in detection["zones"])
        )


EVERYTHING = Selection()


class Closing(NamedTuple):
    """Why the hub ends a subscription, as a WebSocket close code and reason."""

    code: int
    reason: str


_FAILED = Closing(INTERNAL_ERROR, "sending failed")
_SERVER_ENDS = Closing(GOING_AWAY, "the server is going away")


class Encoded:
    """A message as bytes, shared by all who get it."""

    __slots__ = ("_frame", "is_state", "json", "published_at", "stream")

    def __init__(self, message: Message, published_at: float) -> None:
        self.stream = message["stream"]
        self.is_state = message["type"] == "state"
        self.json = _encode(message)
        self.published_at = published_at
        self._frame: bytes | None = None

    @property
    def frame(self) -> bytes:
        """As a WebSocket text frame from a server: not masked, so the same bytes serve every client (RFC 6455, 5.2)."""
        if self._frame is None:
            size = len(self.json)
            if size < 126:
                head = struct.pack("!BB", 0x81, size)
            elif size < 1 << 16:
                head = struct.pack("!BBH", 0x81, 126, size)
            else:
                head = struct.pack("!BBQ", 0x81, 127, size)
            self._frame = head + self.json
        return self._frame


class Subscriber:
    """One client's queue. Made by `Hub.subscribe`; ends with `Hub.unsubscribe`."""

    def __init__(
        self,
        streams: frozenset[str] | None,
        selection: Selection,
        bound: bool,
        max_bytes: int,
        hub: Hub,
    ) -> None:
        self.streams = streams
        self.selection = selection
        self.bound = bound
        self.wake: Callable[[], None] = _nobody
        """Set by whoever sends; called when there is something to pop, or `closing` is set. Must not raise or block."""
        self.accepts: Callable[[Message], bool] | None = None
        """Set by whoever subscribed: messages that it does not want are not queued; None: all."""
        self.closing: Closing | None = None
        """Set once the hub is done with this subscriber; what is queued may still be sent."""
        self.max_messages = 1
        self._max_bytes = max_bytes
        self._hub = hub
        self._queue: deque[Encoded] = deque()
        self._bytes = 0
        self._missed: dict[str, int] = {}
        self._kept_states: dict[str, Encoded] = {}

    @property
    def queued_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        """Messages that `pop` would give."""
        return len(self._queue) + len(self._missed) + len(self._kept_states)

    def pop(self) -> Encoded | None:
        """The next message to send, None if there is none. Oldest first: losses, kept states, the queue."""
        if self._missed:
            stream = next(iter(self._missed))
            gap: Gap = {"type": "gap", "stream": stream, "missed": self._missed.pop(stream), "reason": SLOW_CLIENT}
            return Encoded(gap, self._hub.clock())
        if self._kept_states:
            return self._kept_states.pop(next(iter(self._kept_states)))
        if not self._queue:
            return None
        encoded = self._queue.popleft()
        self._bytes -= len(encoded.json)
        return encoded

    def offer(self, encoded: Encoded) -> None:
        """For the hub. The newest message always finds a place."""
        queue = self._queue
        queue.append(encoded)
        self._bytes += len(encoded.json)
        while len(queue) > self.max_messages or (self._bytes > self._max_bytes and len(queue) > 1):
            oldest = queue.popleft()
            self._bytes -= len(oldest.json)
            self._lose(oldest)
        self.wake()

    def _lose(self, encoded: Encoded) -> None:
        stream = encoded.stream
        if encoded.is_state:
            before = self._kept_states.pop(stream, None)
            self._kept_states[stream] = encoded
            if before is None:
                return
        self._missed[stream] = self._missed.get(stream, 0) + 1
        self._hub.metrics.messages_dropped(SLOW_CLIENT)


class Hub:
    """`max_messages` is for each stream that a subscriber listens to, `max_bytes` for the subscriber as a whole."""

    def __init__(self, max_messages: int, max_bytes: int, *, metrics: HubMetrics, clock: Callable[[], float]) -> None:
        self.metrics = metrics
        self.clock = clock
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._subscribers: dict[Subscriber, None] = {}  # an ordered set
        self._routes: dict[str, tuple[Subscriber, ...]] = {}  # stream -> who listens; rebuilt after changes
        self._states: dict[str, tuple[State, float]] = {}
        self._closed = False

    def limit(self, max_messages: int, max_bytes: int) -> None:
        """Other limits: `max_messages` for all subscribers, `max_bytes` for those to come."""
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._set_limits()

    def __len__(self) -> int:
        """Subscribers."""
        return len(self._subscribers)

    def publish(self, message: Message) -> None:
        """To all who listen to its stream. `sent_at` of a result is now."""
        stream, now = message["stream"], self.clock()
        if message["type"] == "state":
            if stream not in self._states:
                self._states[stream] = (message, now)
                self._set_limits()
            self._states[stream] = (message, now)
        route = self._routes.get(stream)
        if route is None:
            route = self._routes[stream] = tuple(s for s in self._subscribers if _listens(s, stream))
        if not route:
            return
        encodings: dict[Selection, Encoded] = {}
        for subscriber in route:
            if subscriber.accepts is not None and not subscriber.accepts(message):
                continue
            selection = subscriber.selection
            encoded = encodings.get(selection)
            if encoded is None:
                encoded = encodings[selection] = _encoded(message, selection, encodings, now)
            try:
                subscriber.offer(encoded)
            except Exception:  # whatever it is, the others and the frames on their way have no part in it
                log.exception("stream=%s a subscriber failed and is dropped", stream, extra={"stream": stream})
                self._close(subscriber, _FAILED)

    def subscribe(
        self,
        *,
        streams: frozenset[str] | None = None,
        selection: Selection = EVERYTHING,
        bound: bool = False,
    ) -> Subscriber:
        """Listen to `streams`, None for all that there are and will be. The current state of each comes first.

        `bound`: the subscription ends with its stream (it listens to one only).
        """
        subscriber = Subscriber(streams, selection, bound, self._max_bytes, self)
        self._subscribers[subscriber] = None
        self._routes.clear()
        self._set_limits()
        for stream, (state, since) in self._states.items():
            if _listens(subscriber, stream):
                subscriber.offer(Encoded(_aged(state, self.clock() - since), self.clock()))
        if self._closed:
            self._close(subscriber, _SERVER_ENDS)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Nothing more is offered. May be called again."""
        self._subscribers.pop(subscriber, None)
        self._routes.clear()

    def close_stream(self, stream: str) -> None:
        """The stream is gone: a last state message to all who listen, and the end of those who listen to it alone."""
        self.publish({"type": "state", "stream": stream, "state": "stopped", "reason": REMOVED})
        del self._states[stream]
        for subscriber in self._routes.pop(stream, ()):
            if subscriber.bound:
                self._close(subscriber, Closing(NORMAL_CLOSURE, "the stream was removed"))
        self._set_limits()

    def close(self) -> None:
        """The server ends: so do all subscriptions, and those that still come."""
        self._closed = True
        for subscriber in list(self._subscribers):
            self._close(subscriber, _SERVER_ENDS)

    def _close(self, subscriber: Subscriber, closing: Closing) -> None:
        self.unsubscribe(subscriber)
        subscriber.closing = closing
        try:
            subscriber.wake()
        except Exception:
            log.exception("a subscriber failed at its end")

    def _set_limits(self) -> None:
        """A subscriber to all streams gets as many messages a stream kept as a subscriber to one."""
        for subscriber in self._subscribers:
            width = len(self._states) if subscriber.streams is None else len(subscriber.streams)
            subscriber.max_messages = self._max_messages * max(width, 1)


def _nobody() -> None:
    """Nobody sends yet: messages wait in the queue."""


def _listens(subscriber: Subscriber, stream: str) -> bool:
    return subscriber.streams is None or stream in subscriber.streams


def _encoded(message: Message, selection: Selection, encodings: dict[Selection, Encoded], now: float) -> Encoded:
    """The message for a selection; the encoding of everything, where the selection takes nothing away."""
    if message["type"] == "result" and selection is not EVERYTHING:
        detections = [d for d in message["detections"] if selection.wants(d)]
        if len(detections) < len(message["detections"]):
            fewer: Result = {**message, "detections": detections}
            return Encoded(fewer, now)
    whole = encodings.get(EVERYTHING)
    if whole is None:
        whole = encodings[EVERYTHING] = Encoded(message, now)
    return whole


def _aged(state: State, elapsed: float) -> State:
    """The state as it stands `elapsed` seconds later."""
    retry_in_s = state.get("retry_in_s")
    if retry_in_s is None:
        return state
    return {**state, "retry_in_s": round(max(retry_in_s - elapsed, 0.0), 3)}
