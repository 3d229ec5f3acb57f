"""The parts of a camera's process together, on fake sources: every frame's fate, states, settings, pictures."""

from __future__ import annotations

import io
import itertools
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from ingest_harness import INPUT_SIZE, PATIENCE_S, FakeSource, Harness, fixed
from ingest_streams import encoded, picture
from PIL import Image

from server.ingest import camera as camera_module
from server.ingest.camera import CameraProcess
from server.ingest.slots import Slots
from server.ingest.source import AccessUnit, Reason, SourceError, StreamInfo
from server.ingest.wire import DecodeErrorKind, EventKind

LIVE = StreamInfo("h264", fps=25, transport="tcp", client="native")
FILE = StreamInfo("h264", live=False)
GONE = SourceError(Reason.REFUSED, "the connection is refused")


def units(count: int = 40, coding: str = "p") -> list[AccessUnit]:
    return list(encoded(coding)[:count])


def test_each_frame_of_a_camera_reaches_its_slot() -> None:
    harness = Harness(fixed(FakeSource(LIVE, units(), gap_s=0.002)))
    harness.until_seen(40)
    harness.stop()
    assert harness.drops() == {}
    events = harness.ready()
    assert [event.seq for event in events] == list(range(1, 41))
    for event in events:
        assert (event.source_width, event.source_height) == (192, 128)
        assert (event.input_width, event.input_height) == (256, 192)
        assert event.arrived_at <= event.ready_at
        assert event.pts == pytest.approx((event.seq - 1) / 25)
        assert abs(event.received_unix - time.time()) < 60
    states = [(state.state, state.reason) for state in harness.states]
    assert states == [("connecting", None), ("connecting", None), ("running", None)]
    opened = harness.states[1]
    assert (opened.codec, opened.width, opened.height) == (LIVE.codec, LIVE.width or None, LIVE.height or None)
    running = harness.states[-1]
    assert (running.codec, running.width, running.height, running.fps) == ("h264", 192, 128, 25)
    assert (running.transport, running.client) == ("tcp", "native")


def test_the_slot_holds_the_letterboxed_picture() -> None:
    harness = Harness(fixed(FakeSource(LIVE, units(1))), free=False)
    harness.until_seen(1)
    [event] = harness.ready()
    image = harness.arena.image(event.slot, event.input_height, event.input_width)
    assert (image[:10] == 114).all()
    assert (image[-11:] == 114).all()
    expected = np.asarray(Image.fromarray(picture(0, 192, 128)).resize((256, 171), Image.Resampling.BILINEAR))
    assert np.abs(image[10:181].astype(int) - expected).mean() < 12
    harness.stop()


def test_without_a_free_slot_a_live_frame_is_dropped() -> None:
    harness = Harness(fixed(FakeSource(LIVE, units(12))), slots=3, free=False)
    harness.until_seen(12)
    assert len(harness.ready()) == 3
    assert harness.drops() == {"NO_SLOT": 9}
    assert len({event.slot for event in harness.ready()}) == 3
    harness.stop()
    assert len(harness.ledger.open_seqs()) == 3, "the server's own frames stay open"


def test_a_file_of_which_every_frame_counts_waits_for_slots() -> None:
    source = FakeSource(FILE, units(), ends=None)
    harness = Harness(fixed(source), slots=2, free=False, every_frame=True, realtime=False)
    harness.until(lambda: len(harness.ready()) == 2)
    for number in range(40):
        harness.until(lambda number=number: len(harness.ready()) > number)  # type: ignore[misc]
        harness.give_back(harness.ready()[number])
    stopped = harness.until_state("stopped")
    assert stopped.reason == "ended"
    assert harness.drops() == {}
    assert len(harness.ready()) == 40
    time.sleep(0.05)
    harness.pump()
    assert source.opened == 1, "a file that is over is not opened again"
    harness.stop()


def test_the_last_pictures_of_a_file_come_out_of_the_decoder() -> None:
    harness = Harness(fixed(FakeSource(FILE, units(coding="b"), ends=None)), every_frame=True)
    harness.until_state("stopped")
    assert len(harness.ready()) == 40
    assert harness.states[-2].state == "running"
    harness.stop()


def test_max_fps_holds_and_changes_at_once() -> None:
    source = FakeSource(LIVE, units(), gap_s=0.005)
    harness = Harness(fixed(source), max_fps=5.0)
    harness.until_seen(20)
    harness.apply(max_fps=None)
    harness.until_seen(40)
    harness.stop()
    assert source.opened == 1, "no reconnect for that"
    first = [event.seq for event in harness.ready() if event.seq <= 20]
    assert first == [1, 6, 11, 16]
    assert len([event for event in harness.ready() if event.seq > 25]) == 15
    assert set(harness.drops()) == {"RATE_LIMIT"}


def test_stop_accounts_for_every_frame() -> None:
    """Frames in the decoder, in the queue and on their way."""
    harness = Harness(fixed(FakeSource(FILE, units(coding="b"))), slots=2, free=False, every_frame=True, realtime=False)
    harness.until(lambda: len(harness.ready()) == 2 and harness.ledger.received >= 8)
    harness.stop()
    assert set(harness.drops()) == {"STOPPED"}
    assert len(harness.ledger.open_seqs()) == 2


def test_frames_inside_the_decoder_are_dropped_when_the_camera_goes() -> None:
    harness = Harness(fixed(FakeSource(LIVE, units(8, "b"), ends=None, gap_s=0.02), FakeSource(LIVE, units(10, "b"))))
    harness.until_seen(14)
    assert harness.drops()["DISCONNECTED"] >= 1
    reasons = [(state.state, state.reason) for state in harness.states]
    once = [("connecting", None), ("connecting", None), ("running", None)]  # before and after the source opens
    assert reasons == [*once, ("backoff", "ended"), *once]
    seqs = [event.seq for event in harness.events if event.kind is EventKind.OPEN]
    assert seqs == list(range(1, len(seqs) + 1)), "numbers go on over connections"
    harness.stop()


def test_a_refused_camera_is_tried_again_with_its_reason() -> None:
    source = FakeSource(LIVE, units(5))
    refused = FakeSource(LIVE, refuses=GONE)
    harness = Harness(fixed(refused, refused, source))
    backoff = harness.until_state("backoff", 2)
    assert (backoff.reason, backoff.detail) == ("refused", "the connection is refused")
    assert backoff.retry_in_s is not None
    assert 0.01 <= backoff.retry_in_s <= 0.05
    harness.until_state("running")
    assert refused.closed == refused.opened == 2
    harness.stop()
    assert source.closed == 1


def test_the_next_source_is_tried_for_a_codec_that_the_first_does_not_speak() -> None:
    native = FakeSource(LIVE, refuses=SourceError(Reason.CODEC, "VP9 is not supported"))
    fallback = FakeSource(replace(LIVE, client="libav"), units(5))
    unused = FakeSource(LIVE)
    harness = Harness(lambda settings: iter((native, fallback, unused)))
    assert harness.until_state("running").client == "libav"
    assert [s.state for s in harness.states] == ["connecting", "connecting", "running"]
    assert unused.opened == 0
    harness.stop()


def test_a_new_address_means_a_reconnect() -> None:
    old, new = FakeSource(LIVE, units(5)), FakeSource(LIVE, units(5))
    harness = Harness(lambda settings: iter([new if settings.url == "other" else old]))
    harness.until_seen(5)
    harness.apply(url="other")
    harness.until_seen(10)
    assert (old.closed, new.opened) == (1, 1)
    assert "backoff" not in [state.state for state in harness.states]
    harness.stop()


def test_new_settings_end_a_pause() -> None:
    refused = FakeSource(LIVE, refuses=GONE)
    good = FakeSource(LIVE, units(3))
    harness = Harness(lambda settings: iter([good if settings.url == "other" else refused]))
    harness.until_state("backoff")
    harness.apply(url="other", backoff_initial_s=500.0, backoff_max_s=500.0)
    harness.until_state("running")
    harness.stop()


def test_a_stream_that_never_clears_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_module, "BLIND_S", 0.1)
    torn = [replace(unit, damaged=True, lost_packets=2) for unit in units()]
    harness = Harness(fixed(FakeSource(LIVE, torn, gap_s=0.01), FakeSource(LIVE, units(5))))
    backoff = harness.until_state("backoff")
    assert backoff.reason == "decode"
    harness.until_state("running")
    lost = [event for event in harness.events if event.kind is EventKind.DECODE_ERROR]
    assert {DecodeErrorKind(event.reason) for event in lost} == {DecodeErrorKind.RTP_LOSS}
    assert sum(event.count for event in lost) == 2 * harness.drops()["DAMAGED"]
    harness.stop()


def test_an_unsupported_codec_is_a_reason_not_a_crash() -> None:
    harness = Harness(fixed(FakeSource(StreamInfo("no-such"), units(30), gap_s=0.005)))
    assert harness.until_state("backoff").reason == "codec"
    harness.stop()


def test_overload_skips_to_a_keyframe_and_tells() -> None:
    slow = {"left": 3}

    def overload(process: CameraProcess) -> None:
        decoder_busy = process._letterboxer.write

        def write(frame, out):  # type: ignore[no-untyped-def]
            if slow["left"] > 0:
                slow["left"] -= 1
                time.sleep(0.1)
            return decoder_busy(frame, out)

        process._letterboxer.write = write  # type: ignore[method-assign]
        process._intake._max_units = 5

    harness = Harness(fixed(FakeSource(LIVE, units())), prepare=overload)
    harness.until_seen(40)
    harness.stop()
    drops = harness.drops()
    assert drops["OVERLOAD"] > 0
    shown = [event.seq for event in harness.ready()]
    jumps = [b for a, b in itertools.pairwise(shown) if b != a + 1]
    assert all((seq - 1) % 10 == 0 for seq in jumps), f"goes on at keyframes: {shown}"
    assert set(drops) <= {"OVERLOAD", "NO_SLOT"}


def test_slots_that_the_server_holds_from_before_are_not_written() -> None:
    harness = Harness(fixed(FakeSource(LIVE, units(3))), slots=3, free=False, held=[(0, 77), (2, 78)], next_seq=100)
    harness.until_seen(3)
    assert [event.slot for event in harness.ready()] == [1]
    assert [event.seq for event in harness.ready()] == [100]
    assert harness.drops() == {"NO_SLOT": 2}
    harness.stop()


def test_a_heartbeat_comes_while_nothing_else_does() -> None:
    harness = Harness(fixed(FakeSource(LIVE)))
    harness.until(lambda: harness.counts()["HEARTBEAT"] >= 2)
    harness.stop()


def test_heartbeats_go_on_while_a_file_waits_for_a_slot() -> None:
    harness = Harness(fixed(FakeSource(FILE, units())), slots=1, free=False, every_frame=True, realtime=False)
    harness.until(lambda: len(harness.ready()) == 1)
    before = harness.counts()["HEARTBEAT"]
    harness.until(lambda: harness.counts()["HEARTBEAT"] >= before + 2)
    harness.stop()


def test_another_input_size_holds_from_the_next_frame_on_without_a_new_connection() -> None:
    source = FakeSource(LIVE, units(60), gap_s=0.02)
    harness = Harness(fixed(source))
    harness.until(lambda: len(harness.ready()) >= 3)
    harness.apply(input_size=INPUT_SIZE // 2)
    harness.until(lambda: harness.events[-1].kind is EventKind.HEARTBEAT and len(harness.ready()) >= 10)
    sizes = [max(event.input_width, event.input_height) for event in harness.ready()]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {INPUT_SIZE, INPUT_SIZE // 2}
    told = [event.input_width for event in harness.events if event.kind is EventKind.HEARTBEAT]
    assert (told[0], told[-1]) == (INPUT_SIZE, INPUT_SIZE // 2)
    changed = next(n for n, event in enumerate(harness.events)
                   if event.kind is EventKind.HEARTBEAT and event.input_width == INPUT_SIZE // 2)  # fmt: skip
    behind = [event for event in harness.events[changed:] if event.kind is EventKind.READY]
    assert {event.input_width for event in behind} <= {INPUT_SIZE // 2}, "the heartbeat's word holds"
    assert source.closed == 0
    harness.stop()


def test_a_native_call_that_hangs_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(FakeSource):
        def open(self) -> StreamInfo:
            released.wait(PATIENCE_S)
            raise GONE

    monkeypatch.setattr("server.ingest.receiver._OPEN_MARGIN_S", 0.1)
    released = threading.Event()
    harness = Harness(fixed(Hanging(LIVE)), open_timeout_s=0.1)
    state = harness.until_state("backoff")
    assert (state.reason, state.retry_in_s) == ("timeout", None)
    harness.until(lambda: harness.left == [camera_module.EXIT_STUCK])
    released.set()


# Pictures.


def test_jpegs_of_kept_frames() -> None:
    harness = Harness(fixed(FakeSource(LIVE, units(3))), free=False)
    harness.until_seen(3)
    first, second, _ = harness.ready()
    assert harness.encode(1, completed=True) == b"", "none has a result yet"
    harness.give_back(second)
    newest = harness.encode(2)
    done = harness.encode(3, completed=True)
    by_seq = harness.encode(4, seq=first.seq)
    for jpeg, number in ((newest, 2), (done, 1), (by_seq, 0)):
        image = Image.open(io.BytesIO(jpeg))
        assert image.size == (192, 128)
        assert np.abs(np.asarray(image).astype(int) - picture(number, 192, 128)).mean() < 14
    assert harness.encode(5, seq=second.seq) == done, "the newest completed one is still kept"
    harness.give_back(first, completed=False)
    assert harness.encode(6, seq=first.seq) == b""
    harness.stop()


def test_jpegs_are_scaled_and_carry_boxes() -> None:
    harness = Harness(fixed(FakeSource(LIVE, units(1))))
    harness.until_seen(1)
    plain = Image.open(io.BytesIO(harness.encode(1, max_width=96, quality=95)))
    drawn = Image.open(io.BytesIO(harness.encode(2, max_width=96, quality=95, boxes=[(48.0, 32, 144, 96, "cat")])))
    assert plain.size == drawn.size == (96, 64)
    changed = np.abs(np.asarray(plain).astype(int) - np.asarray(drawn)).max(axis=2) > 60
    assert changed[16:48, 22:27].any(axis=1).mean() > 0.8, "the box's left side, at half size"
    assert not changed[:, 80:].any()
    assert Image.open(io.BytesIO(harness.encode(3, max_width=5000))).size == (192, 128), "never enlarged"
    harness.stop()


# Slots.


def test_a_slot_is_freed_by_its_holder_only() -> None:
    slots = Slots(2, held=[(0, 7)])
    assert slots.take(8) == 1
    assert slots.take(9) is None
    assert not slots.free(0, 8)
    assert not slots.free(1, 7)
    assert not slots.free(5, 8)
    assert slots.free(0, 7)
    assert not slots.free(0, 7)
    assert slots.take(9) == 0
