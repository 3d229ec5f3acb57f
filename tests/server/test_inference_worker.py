"""The worker's rooms, without a process: a fake engine, a socket pair, the worker in a thread."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.inference import protocol
from server.inference.config import WorkerConfig, decode_config, encode_config
from server.inference.loading import describe
from server.inference.protocol import (
    AttachArena,
    DetachArena,
    Done,
    Failed,
    Frame,
    Hello,
    Infer,
    Mode,
    Prepare,
    Prepared,
)
from server.inference.worker import Host, worker_main
from server.shm import Arena, slot_bytes
from server.testing.engines import BAD_HEIGHT, BOX, FACTORY, Behaviour, fake_bundle, load, mark

HEIGHT, WIDTH = 384, 640


class Bench:
    """The server's end of a worker that runs in a thread."""

    def __init__(self, **settings: object) -> None:
        self.sock, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.config = WorkerConfig(bundle=fake_bundle(**settings), engine_factory=FACTORY)
        self.ended: bool | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.arena = Arena.create("test", 16, slot_bytes(640))

    def _run(self) -> None:
        self.ended = worker_main(self.theirs, self.config)

    def send(self, message: protocol.Request) -> None:
        self.sock.sendall(protocol.encode(message))

    def receive(self) -> protocol.Reply:
        return protocol.decode_reply(self.sock.recv(protocol.MAX_MESSAGE_BYTES))

    def attach(self, number: int = 1) -> None:
        message = AttachArena(number, self.arena.slots, self.arena.slot_bytes)
        socket.send_fds(self.sock, [protocol.encode(message)], [self.arena.fd])

    def image(self, slot: int = 0, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
        return self.arena.image(slot, height, width)

    def infer(self, *frames: Frame, height: int = HEIGHT, width: int = WIDTH) -> Done:
        self.send(Infer(7, height, width, list(frames)))
        done = self.receive()
        assert isinstance(done, Done)
        assert done.id == 7
        return done

    def close(self) -> None:
        self.sock.close()
        self.thread.join(20)
        assert not self.thread.is_alive(), "the end of the socket ends the worker"
        self.theirs.close()
        self.arena.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    assert isinstance(made.receive(), Hello)
    made.attach()
    yield made
    made.close()


def frame(slot: int = 0, **fields: Any) -> Frame:
    usual = {"arena": 1, "slot": slot, "source_width": 1280, "source_height": 720, "confidence": 0.25, "iou": 0.7}
    return Frame(**{**usual, **fields})


def boxes(done: Done, index: int = 0) -> npt.NDArray[np.float32]:
    return np.frombuffer(done.detections[index], np.float32).reshape(-1, protocol.DETECTION_COLUMNS)


def test_it_says_what_it_is() -> None:
    bench = Bench(parallel=2, max_batch=4)
    hello = bench.receive()
    assert hello == Hello("fake", "fp32", "none", "it is the only one", 2, 4, HEIGHT, WIDTH)
    bench.close()


def test_the_configured_batch_caps_the_engines_and_one_that_would_not_fit_a_message_is_not_offered() -> None:
    bench = Bench(max_batch=1_000_000)
    hello = bench.receive()
    assert isinstance(hello, Hello)
    reply = hello.max_batch * 300 * protocol.DETECTION_COLUMNS * 4
    assert 100_000 < reply <= protocol.MAX_MESSAGE_BYTES
    bench.close()


def test_detections_come_in_source_pixels_with_the_frames_own_thresholds(bench: Bench) -> None:
    mark(bench.image(0), class_id=2, confidence=204)
    mark(bench.image(1), class_id=1, confidence=51)
    thresholds = np.array([2.0, 0.1, 0.9, 0.9], np.float32).tobytes()
    done = bench.infer(
        frame(0), frame(1), frame(1, class_thresholds=thresholds), frame(0, class_thresholds=thresholds),
        frame(0, source_width=640, source_height=384),
    )  # fmt: skip
    assert done.error is None
    assert done.started_at <= done.finished_at <= done.postprocessed_at
    x1, y1, x2, y2 = BOX  # 1280x720 is halved and lies 12 pixels below the input's top
    (found,) = boxes(done, 0)
    np.testing.assert_allclose(found, [x1 * 2, (y1 - 12) * 2, x2 * 2, (y2 - 12) * 2, 0.8, 2], rtol=1e-6)
    assert len(boxes(done, 1)) == 0
    assert boxes(done, 2)[0, 5] == 1
    assert len(boxes(done, 3)) == 0
    np.testing.assert_allclose(boxes(done, 4)[0, :4], BOX)


def test_at_most_the_asked_number_of_detections(bench: Bench) -> None:
    mark(bench.image(0), Behaviour.CROWD)
    done = bench.infer(frame(0), frame(0, max_detections=5))
    assert [len(boxes(done, i)) for i in (0, 1)] == [300, 5]


@pytest.mark.parametrize(
    ("behaviour", "what"), [(Behaviour.RAISE, "told to fail"), (Behaviour.NAN, "NaN")], ids=["raises", "nan"]
)
def test_a_failed_inference_is_an_error_and_never_an_empty_scene(bench: Bench, behaviour: Behaviour, what: str) -> None:
    mark(bench.image(1), behaviour)
    done = bench.infer(frame(0), frame(1))
    assert done.error is not None
    assert what in done.error
    assert (done.detections, done.engine_failed) == ([], True)
    mark(bench.image(1), confidence=200)
    assert len(boxes(bench.infer(frame(1)))) == 1, "the next batch is another matter"


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"arena": 9}, "arena 9"),
        ({"slot": 16}, "slot 16 of 16"),
        ({"class_thresholds": np.zeros(3, np.float32).tobytes()}, "3 class thresholds for a model of 4"),
    ],
    ids=["arena", "slot", "thresholds"],
)
def test_a_wrong_request_is_an_error_that_is_not_the_engines(bench: Bench, wrong: dict[str, Any], what: str) -> None:
    done = bench.infer(frame(**wrong))
    assert done.error is not None
    assert what in done.error
    assert not done.engine_failed


def test_a_detached_arena_is_gone_and_its_memory_given_back(bench: Bench) -> None:
    assert bench.infer(frame()).error is None
    mapped = _maps("test")
    bench.send(DetachArena(1))
    bench.send(DetachArena(1))
    assert "arena 1" in (bench.infer(frame()).error or "")
    assert _maps("test") == mapped - 1


def _maps(name: str) -> int:
    with open("/proc/self/maps") as maps:
        return sum(f"memfd:{name}" in line for line in maps)


def test_an_arena_that_cannot_be_mapped_hurts_no_other(bench: Bench) -> None:
    bench.send(AttachArena(2, 8, 4096))  # its descriptor got lost
    too_large = AttachArena(3, bench.arena.slots + 1, bench.arena.slot_bytes)
    socket.send_fds(bench.sock, [protocol.encode(too_large)], [bench.arena.fd])
    assert bench.infer(frame(arena=1)).error is None
    for number in (2, 3):
        assert f"arena {number}" in (bench.infer(frame(arena=number)).error or "")


def test_a_shape_is_prepared_before_it_is_used(bench: Bench) -> None:
    assert "640x640 has not been prepared" in (bench.infer(frame(), height=640).error or "")
    bench.send(Prepare(640, 640))
    prepared = bench.receive()
    assert isinstance(prepared, Prepared)
    assert (prepared.height, prepared.width, prepared.error) == (640, 640, None)
    assert bench.infer(frame(), height=640).error is None


def test_a_shape_that_cannot_be_prepared_hurts_no_other(bench: Bench) -> None:
    bench.send(Prepare(BAD_HEIGHT, 640))
    prepared = bench.receive()
    assert isinstance(prepared, Prepared)
    assert "told not to prepare 640x96" in (prepared.error or "")
    assert bench.infer(frame()).error is None


def test_a_shape_is_prepared_beside_the_running_ones() -> None:
    bench = Bench(prepare_seconds=0.4)
    assert isinstance(bench.receive(), Hello)
    bench.attach()
    bench.send(Prepare(640, 640))
    assert bench.infer(frame()).error is None, "answered before Prepared"
    assert isinstance(bench.receive(), Prepared)
    bench.close()


@pytest.mark.parametrize("parallel", [1, 2])
def test_as_many_batches_are_inside_the_engine_as_it_wants(parallel: int) -> None:
    bench = Bench(parallel=parallel, seconds=0.05)
    assert isinstance(bench.receive(), Hello)
    bench.attach()
    for number in range(6):
        bench.send(Infer(number, HEIGHT, WIDTH, [frame()]))
    dones = [bench.receive() for _ in range(6)]
    assert all(isinstance(done, Done) and done.error is None for done in dones)
    events = sorted(
        [(d.started_at, 1) for d in dones if isinstance(d, Done)]
        + [(d.finished_at, -1) for d in dones if isinstance(d, Done)]
    )
    inside = np.cumsum([step for _, step in events])
    assert inside.max() == parallel
    bench.close()


def test_under_sustained_load_it_runs_for_throughput_and_then_for_latency_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.inference.modes._WINDOW_S", 0.3)
    bench = Bench(seconds=0.05, throughput_seconds=0.06)
    assert isinstance(bench.receive(), Hello)
    bench.attach()
    bench.send(Prepare(640, 640))
    assert isinstance(bench.receive(), Prepared)
    modes: list[Mode] = []
    dones: list[Done] = []
    sent = 0
    while (len(modes) < 2 and sent < 500) or len(dones) < sent:
        if len(modes) == 1:
            time.sleep(0.15)  # the load is over
        while len(modes) < 2 and sent - len(dones) < (1 if modes else 4):
            bench.send(Infer(sent, 640, 640, [frame()]))
            sent += 1
        reply = bench.receive()
        if isinstance(reply, Mode):
            modes.append(reply)
        else:
            assert isinstance(reply, Done)
            dones.append(reply)
    assert modes == [Mode("throughput", 2), Mode("latency", 1)]
    assert all(done.error is None for done in dones)
    bench.close()


def test_a_result_that_does_not_fit_a_message_is_an_error_that_says_so() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = WorkerConfig(bundle=fake_bundle(), engine_factory=FACTORY)
    host = Host(theirs, load(config), config)
    host._send(Done(5, 1.0, 2.0, 3.0, [bytes(protocol.MAX_MESSAGE_BYTES)]))
    done = protocol.decode_reply(ours.recv(protocol.MAX_MESSAGE_BYTES))
    assert isinstance(done, Done)
    assert "fit one message" in (done.error or "")
    assert (done.id, done.started_at, done.finished_at, done.detections) == (5, 1.0, 2.0, [])
    ours.close()
    theirs.close()


def test_a_server_that_dies_with_answers_unread_is_the_end_as_well() -> None:
    bench = Bench()
    assert isinstance(bench.receive(), Hello)
    bench.send(Prepare(640, 640))
    bench.sock.setblocking(False)
    while True:
        try:
            bench.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            time.sleep(0.001)
        else:
            break
    bench.close()
    assert bench.ended is False


def test_stop_ends_in_order() -> None:
    bench = Bench()
    assert isinstance(bench.receive(), Hello)
    bench.send(protocol.Stop())
    bench.thread.join(20)
    assert bench.ended is True
    bench.close()


def test_an_engine_that_cannot_be_started_says_why(tmp_path: os.PathLike[str]) -> None:
    marker = os.path.join(tmp_path, "broken")
    open(marker, "w").close()
    bench = Bench(fails_while=marker)
    assert bench.receive() == Failed("the fake engine was told not to start")
    bench.close()


def test_the_config_travels_whole() -> None:
    config = WorkerConfig(bundle="/b", engine="openvino", precision="int8", threads=2, max_batch=4, cache_dir="/c")
    assert decode_config(encode_config(config)) == config


def test_foreign_errors_are_told_with_their_type() -> None:
    assert describe(ValueError("two\n lines")) == "ValueError: two lines"
    assert describe(RuntimeError()) == "RuntimeError: no message"
