"""The hub without sockets: who gets what, and that losses are counted to the message."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from fake_runtime import detection, result
from hypothesis import given
from hypothesis import strategies as st

from server.delivery.hub import Hub, Selection, Subscriber
from server.results import State


class Numbers:
    """Stands in for Metrics."""

    def __init__(self) -> None:
        self.dropped = 0

    def observe_delivery(self, seconds: float) -> None: ...

    def messages_dropped(self, reason: str, count: int = 1) -> None:
        assert reason == "slow_client"
        self.dropped += count


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(max_messages: int = 64, max_bytes: int = 1 << 20) -> Hub:
    return Hub(max_messages, max_bytes, metrics=Numbers(), clock=Clock())


def state(stream: str, name: str = "running", **more: float) -> State:
    return {"type": "state", "stream": stream, "state": name, "reason": None, **more}  # type: ignore[typeddict-item]


def drain(subscriber: Subscriber) -> list[dict]:
    messages = []
    while (encoded := subscriber.pop()) is not None:
        messages.append(json.loads(encoded.json))
    return messages


def test_everybody_gets_the_same_bytes() -> None:
    hub = make()
    first, second = hub.subscribe(), hub.subscribe(streams=frozenset({"door"}))
    message = result("door", 1, [detection()])
    hub.publish(message)
    a, b = first.pop(), second.pop()
    assert a is not None
    assert a is b
    assert json.loads(a.json) == message
    assert first.pop() is None


def test_streams_are_kept_apart() -> None:
    hub = make()
    door, both, everything = (
        hub.subscribe(streams=streams) for streams in (frozenset({"door"}), frozenset({"door", "yard"}), None)
    )
    for stream in ("door", "yard", "roof"):
        hub.publish(result(stream))
    assert [m["stream"] for m in drain(door)] == ["door"]
    assert [m["stream"] for m in drain(both)] == ["door", "yard"]
    assert [m["stream"] for m in drain(everything)] == ["door", "yard", "roof"]


def test_a_selection_takes_detections_away_and_never_messages() -> None:
    hub = make()
    message = result("door", 1, [detection("person", 0.9), detection("car", 0.5, ["yard"]), detection("person", 0.3)])
    cases = [
        (Selection(classes=frozenset({"person"})), [0, 2]),
        (Selection(min_confidence=0.5), [0, 1]),
        (Selection(zone="yard"), [1]),
        (Selection(frozenset({"person"}), 0.4, "yard"), []),
        (Selection(min_confidence=0.1), [0, 1, 2]),
    ]
    subscribers = [hub.subscribe(selection=selection) for selection, _ in cases]
    hub.publish(message)
    for subscriber, (_, kept) in zip(subscribers, cases, strict=True):
        expected = {**message, "detections": [message["detections"][i] for i in kept]}
        assert drain(subscriber) == [expected]
    assert len(message["detections"]) == 3


def test_equal_selections_share_one_encoding_and_idle_ones_share_the_whole() -> None:
    hub = make()
    person = [hub.subscribe(selection=Selection(classes=frozenset({"person"}))) for _ in range(2)]
    lax, whole = hub.subscribe(selection=Selection(min_confidence=0.1)), hub.subscribe()
    hub.publish(result("door", 1, [detection("person"), detection("car")]))
    a, b, c, d = (s.pop() for s in (*person, lax, whole))
    assert a is b
    assert c is d
    assert a is not c


def test_current_states_come_first_with_the_pause_as_it_is_now() -> None:
    hub = make()
    hub.publish(state("door", "connecting"))
    hub.publish(state("door", "backoff", retry_in_s=3.5))
    hub.publish(state("yard"))
    hub.clock.now += 1.25  # type: ignore[attr-defined]
    assert drain(hub.subscribe(streams=frozenset({"door"}))) == [state("door", "backoff", retry_in_s=2.25)]
    assert [m["stream"] for m in drain(hub.subscribe())] == ["door", "yard"]


def test_a_slow_client_loses_the_oldest_and_is_told_by_stream() -> None:
    hub = make(max_messages=2)
    slow = hub.subscribe(streams=frozenset({"a", "b"}))  # two streams: four messages
    for seq in range(1, 5):
        hub.publish(result("a", seq))
        hub.publish(result("b", seq))
    got = drain(slow)
    assert got[:2] == [
        {"type": "gap", "stream": "a", "missed": 2, "reason": "slow_client"},
        {"type": "gap", "stream": "b", "missed": 2, "reason": "slow_client"},
    ]
    assert [(m["stream"], m["seq"]) for m in got[2:]] == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    hub.publish(result("a", 5))
    assert [m["type"] for m in drain(slow)] == ["result"]
    assert hub.metrics.dropped == 4  # type: ignore[attr-defined]


def test_bytes_are_bounded_but_the_newest_always_fits() -> None:
    hub = make(max_messages=1000, max_bytes=5000)
    slow = hub.subscribe()
    for seq in range(100):
        hub.publish(result("a", seq, [detection()] * 5))
        assert slow.queued_bytes <= 5000
    hub.publish(result("a", 100, [detection()] * 500))
    assert slow.queued_bytes > 5000
    assert [m.get("seq", m.get("missed")) for m in drain(slow)] == [100, 100]


def test_one_who_listens_to_all_has_room_for_all() -> None:
    hub = make(max_messages=3)
    everything = hub.subscribe()
    for name in ("a", "b", "c", "d"):
        hub.publish(state(name))
    assert everything.max_messages == 12
    hub.close_stream("a")
    assert everything.max_messages == 9


def test_a_pushed_out_state_is_told_later_unless_a_newer_one_is_too() -> None:
    hub = make(max_messages=2)
    slow = hub.subscribe(streams=frozenset({"a"}))
    hub.publish(state("a", "backoff"))
    hub.publish(state("a", "running"))
    for seq in range(5):
        hub.publish(result("a", seq))
    got = drain(slow)
    assert [(m["type"], m.get("missed"), m.get("state")) for m in got[:2]] == [
        ("gap", 4, None),  # one state, three results
        ("state", None, "running"),
    ]
    assert [m["seq"] for m in got[2:]] == [3, 4]


def test_removal_ends_those_who_listen_to_that_stream_alone() -> None:
    hub = make()
    woken: list[str] = []
    bound = hub.subscribe(streams=frozenset({"door"}), bound=True)
    bound.wake = lambda: woken.append("bound")
    loose = hub.subscribe(streams=frozenset({"door"}))
    hub.publish(state("door"))
    drain(bound)
    hub.close_stream("door")
    last = {"type": "state", "stream": "door", "state": "stopped", "reason": "removed"}
    assert drain(bound) == [last]
    assert drain(loose)[-1] == last
    assert bound.closing is not None
    assert bound.closing.code == 1000
    assert loose.closing is None
    assert woken
    assert drain(hub.subscribe()) == []  # its state is forgotten
    hub.publish(state("door", "connecting"))  # another stream of the same name
    assert drain(bound) == []
    assert [m["state"] for m in drain(loose)] == ["connecting"]


def test_the_end_of_the_server_ends_all() -> None:
    hub = make()
    subscribers = [hub.subscribe() for _ in range(3)]
    hub.close()
    assert [s.closing.code for s in subscribers if s.closing] == [1001] * 3
    assert len(hub) == 0
    late = hub.subscribe()
    assert late.closing is not None
    assert len(hub) == 0


def test_one_who_fails_costs_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    hub = make()
    before, broken, after = hub.subscribe(), hub.subscribe(), hub.subscribe()

    def fail() -> None:
        raise OSError("the socket is gone")

    broken.wake = fail
    hub.publish(result("a", 1))
    hub.publish(result("a", 2))
    assert [m["seq"] for m in drain(before)] == [m["seq"] for m in drain(after)] == [1, 2]
    assert broken.closing is not None
    assert len(hub) == 2
    assert "the socket is gone" in caplog.text


def test_who_left_gets_nothing_more() -> None:
    hub = make()
    subscriber = hub.subscribe()
    hub.publish(result("a", 1))
    hub.unsubscribe(subscriber)
    hub.unsubscribe(subscriber)
    hub.publish(result("a", 2))
    assert [m["seq"] for m in drain(subscriber)] == [1]


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 200_000])
def test_frames_are_what_a_websocket_library_makes(size: int) -> None:
    from websockets.frames import Frame, Opcode

    from server.delivery.hub import Encoded

    message = state("x" * size)
    encoded = Encoded(message, 0.0)
    assert encoded.frame == Frame(Opcode.TEXT, encoded.json).serialize(mask=False)


STREAMS = ("a", "b", "c")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("result"), st.sampled_from(STREAMS)),
        st.tuples(st.just("state"), st.sampled_from(STREAMS)),
        st.tuples(st.just("pop"), st.integers(1, 6)),
    ),
    max_size=120,
)


@given(STEPS, st.integers(1, 4), st.integers(300, 3000))
def test_got_and_missed_add_up_to_published(steps: list[tuple[str, object]], messages: int, size: int) -> None:
    """For every stream, at every instant: got + missed + what still waits = published; order is kept; a client that
    has read all knows the last state."""
    hub = make(messages, size)
    subscriber = hub.subscribe()
    published: Counter[str] = Counter()
    got: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    last_seq: dict[str, int] = {}
    last_state: dict[str, int] = {}
    told_state: dict[str, int] = {}

    def read(message: dict) -> None:
        stream = message["stream"]
        if message["type"] == "gap":
            assert message["missed"] > 0
            missed[stream] += message["missed"]
            return
        got[stream] += 1
        if message["type"] == "state":
            assert message["retry_in_s"] > told_state.get(stream, 0)
            told_state[stream] = message["retry_in_s"]
        else:
            assert message["seq"] > last_seq.get(stream, 0)
            last_seq[stream] = message["seq"]

    for number, (what, argument) in enumerate(steps, start=1):
        if what == "pop":
            for _ in range(int(argument)):  # type: ignore[call-overload]
                if (encoded := subscriber.pop()) is not None:
                    read(json.loads(encoded.json))
            continue
        stream = str(argument)
        published[stream] += 1
        if what == "state":
            hub.publish(state(stream, "backoff", retry_in_s=float(number)))
            last_state[stream] = number
        else:
            hub.publish(result(stream, number))
    for message in drain(subscriber):
        read(message)
    assert got + missed == published
    assert told_state == last_state
    assert hub.metrics.dropped == missed.total()  # type: ignore[attr-defined]
