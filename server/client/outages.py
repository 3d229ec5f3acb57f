"""What a client missed while its connection was lost, by the sequence numbers of the results. Pure."""

from __future__ import annotations

from typing import Literal, TypedDict

from server.results import Message


class Reconnected(TypedDict):
    """Comes before the first result of a stream after the connection was lost, from the client itself."""

    type: Literal["reconnected"]
    stream: str
    missed: int | None
    """Frames between the last result before and the first one after: at most so many results were missed. null: the
    stream counts anew, since the server or the stream was restarted. Not seen: a new count that has passed the old."""
    away_s: float
    """So long there was no connection."""


class Outages:
    """Of one subscription."""

    def __init__(self) -> None:
        self._last_seq: dict[str, int] = {}
        self._away_s: dict[str, float] = {}

    def over(self, away_s: float) -> None:
        """There is a connection again, after so long."""
        for stream in self._last_seq:
            self._away_s[stream] = self._away_s.get(stream, 0.0) + away_s

    def report(self, message: Message) -> Reconnected | None:
        """What is to be told before this message."""
        stream = message["stream"]
        if message["type"] == "state" and message["reason"] == "removed":
            self._last_seq.pop(stream, None)
            self._away_s.pop(stream, None)
        if message["type"] != "result":
            return None
        last, seq = self._last_seq.get(stream), message["seq"]
        self._last_seq[stream] = seq
        away_s = self._away_s.pop(stream, None)
        if away_s is None or last is None:
            return None
        missed = seq - last - 1 if seq > last else None
        return {"type": "reconnected", "stream": stream, "missed": missed, "away_s": round(away_s, 3)}
