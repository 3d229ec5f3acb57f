"""Which of the waiting frames go to the engine now.

Pure: no threads, no clock. `now` is passed in (monotonic seconds), so every rule is tested in virtual time.

**Newest wins.** A camera has at most one frame waiting; a newer one replaces it. A frame that has reached its stream's
staleness budget, or its own deadline, is never handed out. Streams that may lose nothing (`fifo`: files with
every_frame, POST /detect) keep their order instead.

**Shares.** Start-time fair queueing: each stream has a virtual time, a frame served moves it by 1/weight, and the
stream with the least one leads. Ties go to the earliest deadline, then to the longest wait. A stream that was idle
joins at the virtual time of the leader served last, less at most `_CREDIT` frames: every camera is idle from its
service to its next frame, which must not cost it its share, but nothing is saved up. Once `take` finds nothing to
serve, the engine is about to idle, nobody is owed anything, and all start level: with little load the order is by
deadline alone.

**Batches.** A batch has one shape, its leader's, and is filled in the same order; a stream may ride in it at most
`_AHEAD` frames ahead of its turn, so that a common shape cannot outgrow its share of the engine. Cameras pause
400-500 ms around I-frames, so a batch never waits for one particular stream: `max_delay_s` waits for anyone, only as
long as no other shape waits, and never into the last `max_delay_s` before a member's deadline.

**Bound.** From the moment a runnable stream of weight w has a frame waiting until one of its frames is taken, any
other stream of weight v gets at most (1 + A) v / w + 1 + A + C frames, so all together (1 + A) W / w + (1 + A + C) N:
W is the sum of the weights and N the number of the streams that offer frames meanwhile, C is `_CREDIT`, and A is 0 for
max_batch 1, else `_AHEAD`. A shape that is not runnable yet (compiling) is passed over and keeps its place, with no
more credit, until it is.

Cost: `offer` O(log n), `take` O(shapes + batch log n); n = streams with a frame waiting.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Shape = tuple[int, int]
"""(height, width) of the model's input, pixels."""
DropReason = Literal["replaced", "stale", "stopped"]

_AHEAD = 1
"""Frames by which a stream may be served ahead of its turn to fill a batch. One is what lets N streams of one weight
fill batches of any size; each more would lengthen the bound and bring nothing."""
_CREDIT = 2
"""Frames of credit that outlive an idle time. Simulated at 25 fps a camera and 50 images/s: a camera of weight 4 among
fifteen of weight 1 gets 8.3 images/s with no credit or one frame of it, and 10.5, its share, with two."""
_COMPACT = 64
"""Heaps hold outdated entries until they surface; they are rebuilt once these outnumber the live ones by so many."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How one stream is treated. ValueError for a weight that is not positive and finite, or a budget of 0 or less."""

    weight: float = 1.0
    """Share of the engine under overload, relative to other streams."""
    max_staleness_s: float = 0.5
    """A frame that arrived so long ago is dropped instead of served; math.inf: never."""
    fifo: bool = False
    """Every frame is kept, first in, first out; otherwise a newer frame replaces the waiting one."""

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight {self.weight} is not a positive finite number")
        if not self.max_staleness_s > 0:
            raise ValueError(f"max_staleness_s {self.max_staleness_s} is not positive")


class Waiting(NamedTuple):
    """A frame that could be served."""

    stream: str
    seq: int
    shape: Shape
    arrived_at: float
    """When it came off the wire: its age counts from here."""
    ready_at: float
    """When it stood in its slot: `max_delay_s` counts from here."""
    payload: Any = None
    deadline: float = math.inf
    """Not served at or after this time; the staleness budget may end earlier."""


class Dropped(NamedTuple):
    """A frame given back unserved."""

    frame: Waiting
    reason: DropReason


class _Entry:
    """A frame in a queue, with the time from which it is stale."""

    __slots__ = ("expires_at", "frame", "waiting")

    def __init__(self, frame: Waiting, policy: Policy) -> None:
        self.frame = frame
        self.waiting = True
        self.expires_at = math.inf
        self.refresh(policy)

    def refresh(self, policy: Policy) -> bool:
        """Apply a policy; whether that changed the time."""
        before = self.expires_at
        self.expires_at = min(self.frame.deadline, self.frame.arrived_at + policy.max_staleness_s)
        return self.expires_at != before


class _Stream:
    __slots__ = ("entries", "policy", "ticket", "virtual")

    def __init__(self, policy: Policy, virtual: float) -> None:
        self.policy = policy
        self.entries: deque[_Entry] = deque()
        self.virtual = virtual
        self.ticket = 0  # number of its one valid entry in the lane of its first frame's shape; 0: none


_Turn = tuple[float, float, float, int, _Stream]
"""Virtual time, deadline, arrival, ticket: the order of service."""


class _Lane:
    """All that waits with one shape."""

    __slots__ = ("heads", "turns", "waiting")

    def __init__(self) -> None:
        self.turns: list[_Turn] = []  # a heap; entries whose ticket is not their stream's are outdated
        self.heads = 0  # streams whose first frame has this shape
        self.waiting = 0  # frames of this shape, whether first or not


def _always(shape: Shape) -> bool:
    return True


class Scheduler:
    """Holds every frame offered until it is taken, or given back as dropped: exactly once."""

    def __init__(self, max_batch: int = 1, max_delay_s: float = 0.0) -> None:
        self.max_batch = max_batch
        """Most frames of a batch; may be changed at any time."""
        self.max_delay_s = max_delay_s
        """How long a batch that is not full may wait for more frames."""
        self._streams: dict[str, _Stream] = {}
        self._lanes: dict[Shape, _Lane] = {}
        self._expiries: list[tuple[float, int, _Stream, _Entry]] = []  # a heap; outdated where not waiting
        self._stale: list[Dropped] = []  # found by `take`, given back by `expire`
        self._numbers = itertools.count(1)
        self._frames = 0
        self._virtual = 0.0  # virtual time: the highest of a leader served
        self._level = 0.0  # virtual time of the last idle moment: nobody keeps credit from before
        self._furthest = 0.0  # the highest virtual time that any stream has reached
        self._hold_until = math.inf  # `take` waits for a fuller batch until then at most; inf: it does not wait

    @property
    def waiting(self) -> int:
        """Frames held: neither taken nor given back yet."""
        return self._frames + len(self._stale)

    def shapes(self) -> list[Shape]:
        """Of the frames that wait to be taken."""
        return [shape for shape, lane in self._lanes.items() if lane.waiting]

    def configure(self, stream: str, policy: Policy) -> None:
        """Add a stream, or change how one is treated from now on; its waiting frames stay."""
        known = self._streams.get(stream)
        if known is None:
            self._streams[stream] = _Stream(policy, self._virtual)
            return
        known.policy = policy
        for entry in known.entries:
            if entry.refresh(policy):
                self._watch(known, entry)
        if known.entries:
            self._requeue(known)

    def remove(self, stream: str) -> list[Dropped]:
        """Forget a stream; what it had waiting comes back. An unknown one has nothing waiting."""
        known = self._streams.pop(stream, None)
        if known is None:
            return []
        gone = [dropped for dropped in self._stale if dropped.frame.stream == stream]
        self._stale = [dropped for dropped in self._stale if dropped.frame.stream != stream]
        while known.entries:
            gone.append(Dropped(self._pop(known), "stopped"))
        return gone

    def offer(self, frame: Waiting, now: float) -> list[Dropped]:
        """Take a frame over; what it replaces comes back. KeyError if its stream is not configured."""
        stream = self._streams[frame.stream]
        replaced: list[Dropped] = []
        if stream.policy.fifo and stream.entries:
            self._append(stream, frame)
            return replaced
        if stream.entries:
            replaced = [Dropped(entry.frame, "replaced") for entry in stream.entries]
            self._withdraw(stream)
            for entry in stream.entries:
                self._forget(entry)
            stream.entries.clear()
        else:
            stream.virtual = max(stream.virtual, self._least(stream))
        self._append(stream, frame)
        self._requeue(stream)
        return replaced

    def expire(self, now: float) -> list[Dropped]:
        """Give back what is stale at `now`."""
        self._collect_stale(now)
        stale, self._stale = self._stale, []
        return stale

    def take(self, now: float, runnable: Callable[[Shape], bool] = _always) -> list[Waiting]:
        """The next batch, or [] if nothing is to be done now. To be called only when the engine has room for a batch:
        an empty answer for lack of frames ends all debts. Frames of shapes that are not `runnable` are passed over."""
        self._collect_stale(now)
        lane, others = self._leading(runnable)
        if lane is None:
            self._virtual = self._level = max(self._virtual, self._furthest)
            self._hold_until = math.inf
            return []
        if not others and lane.waiting < self.max_batch and self._held(lane, now):
            return []
        self._hold_until = math.inf
        return self._serve(lane)

    def wake_at(self, now: float) -> float | None:
        """When `expire` or `take` could do something that it could not at `now` without a new offer. None: never."""
        if self._stale:
            return now
        while self._expiries and not _watched(self._expiries[0]):
            heapq.heappop(self._expiries)
        at = self._expiries[0][0] if self._expiries else math.inf
        if self._hold_until > now:
            at = min(at, self._hold_until)
        return None if at == math.inf else at

    # Choosing.

    def _leading(self, runnable: Callable[[Shape], bool]) -> tuple[_Lane | None, bool]:
        """The lane of the stream whose turn it is, and whether frames of another runnable shape wait as well."""
        best: _Lane | None = None
        found = 0
        for shape, lane in self._lanes.items():
            if not lane.heads or not runnable(shape):
                continue
            found += 1
            turn = self._first(lane)
            if best is None or turn[:4] < best.turns[0][:4]:
                best = lane
        return best, found > 1

    def _first(self, lane: _Lane) -> _Turn:
        """The lane's first valid turn (it has one), on top of its heap."""
        turns = lane.turns
        while True:
            turn = turns[0]
            stream = turn[4]
            if turn[3] != stream.ticket:
                heapq.heappop(turns)
            elif turn[0] < (least := self._least(stream)):
                # Its shape was passed over while others went on: it keeps its place, but is owed no more.
                stream.virtual = least
                heapq.heapreplace(turns, (least, *turn[1:]))
            else:
                return turn

    def _least(self, stream: _Stream) -> float:
        """The lowest virtual time that a stream with a frame waiting may have now."""
        return max(self._level, self._virtual - _CREDIT / stream.policy.weight)

    def _held(self, lane: _Lane, now: float) -> bool:
        """Whether the lane's batch, which is not full, waits for more. Notes until when: a wait that has begun is never
        prolonged, though newer frames replace those that it began with."""
        if self.max_delay_s <= 0:
            return False
        leader = self._first(lane)[4].entries[0].frame
        until = min(self._hold_until, leader.ready_at + self.max_delay_s)
        for turn in lane.turns:
            if turn[3] == turn[4].ticket:
                until = min(until, turn[4].entries[0].expires_at - self.max_delay_s)
        self._hold_until = until
        return now < until

    def _serve(self, lane: _Lane) -> list[Waiting]:
        start = self._virtual = max(self._virtual, self._first(lane)[0])
        batch: list[Waiting] = []
        while len(batch) < self.max_batch and lane.heads:
            virtual, *_, stream = self._first(lane)
            step = 1.0 / stream.policy.weight
            alone = len(stream.entries) == self._frames
            if virtual > start + _AHEAD * step and not alone:
                break
            # Room that nobody else waits for is not charged beyond what keeps the bound.
            stream.virtual = min(virtual + step, start + (_AHEAD + 1) * step)
            self._furthest = max(self._furthest, stream.virtual)
            batch.append(self._pop(stream))
        return batch

    # Keeping the queues, the lanes and the expiries in step.

    def _append(self, stream: _Stream, frame: Waiting) -> None:
        entry = _Entry(frame, stream.policy)
        stream.entries.append(entry)
        lane = self._lanes.get(frame.shape)
        if lane is None:
            lane = self._lanes[frame.shape] = _Lane()
        lane.waiting += 1
        self._frames += 1
        self._watch(stream, entry)

    def _pop(self, stream: _Stream) -> Waiting:
        """Take a stream's first frame out; the next one, if any, takes its place in the order."""
        self._withdraw(stream)
        entry = stream.entries.popleft()
        self._forget(entry)
        if stream.entries:
            self._requeue(stream)
        return entry.frame

    def _forget(self, entry: _Entry) -> None:
        entry.waiting = False
        self._lanes[entry.frame.shape].waiting -= 1
        self._frames -= 1

    def _withdraw(self, stream: _Stream) -> None:
        """Take the stream's turn back, if it has one."""
        if stream.ticket:
            stream.ticket = 0
            self._lanes[stream.entries[0].frame.shape].heads -= 1

    def _requeue(self, stream: _Stream) -> None:
        """Give the stream its turn by its first frame."""
        self._withdraw(stream)
        entry = stream.entries[0]
        lane = self._lanes[entry.frame.shape]
        lane.heads += 1
        stream.ticket = next(self._numbers)
        if len(lane.turns) > 2 * lane.heads + _COMPACT:
            lane.turns = [turn for turn in lane.turns if turn[3] == turn[4].ticket]
            heapq.heapify(lane.turns)
        turn = (stream.virtual, entry.expires_at, entry.frame.arrived_at, stream.ticket, stream)
        heapq.heappush(lane.turns, turn)

    def _watch(self, stream: _Stream, entry: _Entry) -> None:
        """Remember when the entry becomes stale."""
        if entry.expires_at == math.inf:
            return
        if len(self._expiries) > 2 * self._frames + _COMPACT:
            self._expiries = [expiry for expiry in self._expiries if _watched(expiry)]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (entry.expires_at, next(self._numbers), stream, entry))

    def _collect_stale(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] <= now:
            expiry = heapq.heappop(self._expiries)
            _, _, stream, entry = expiry
            if not _watched(expiry):
                continue
            if entry is stream.entries[0]:
                frame = self._pop(stream)
            else:
                stream.entries.remove(entry)
                self._forget(entry)
                frame = entry.frame
            self._stale.append(Dropped(frame, "stale"))


def _watched(expiry: tuple[float, int, _Stream, _Entry]) -> bool:
    """Whether an expiry is the one that counts: its frame still waits, and its stream's budget is still the same."""
    return expiry[3].waiting and expiry[0] == expiry[3].expires_at
