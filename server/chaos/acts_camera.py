"""What happens to cameras and to their packets. Each act is a context: the fault lasts as long as it does.

An act may give a function (seconds) that keeps the fault going; without one, time is all that it needs.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from server.bench.processes import BenchError
from server.chaos.bed import FPS, PATH, STREAM, Bed
from server.chaos.judge import worst_window
from server.chaos.matrix import BACKOFF_S
from server.testing.camera import Camera, Mount
from server.testing.clip import split_annexb
from server.testing.synthetic import coded
from server.testing.truth.clips import HEIGHT, WIDTH, pattern_clip
from server.testing.truth.pattern import draw

KeepGoing = Callable[[float], None]
_FLAP_S = 2.0
_JUMP_S = 3600.0
_FILE_S = 30.0
_HERD = 50
_HERD_FPS = 2.0
_HERD_AWAY_S = 4.0
_HERD_START_S = 60.0
_HERD_WINDOW = 0.1
_HERD_SHARE = 0.7
"""Pauses differ by up to a quarter, so a tenth of the pause holds some 40 % of all attempts that chance has spread, and
all of them if it has not."""


# The connection.


def refused(bed: Bed) -> Iterator[None]:
    bed.camera.stop()
    yield
    bed.camera.start()


def dns(bed: Bed) -> Iterator[None]:
    right, bed.url = bed.url, "rtsp://camera.invalid/suffers"
    yield
    bed.patch(url=right)


def black_hole(bed: Bed) -> Iterator[None]:
    """A full queue of a listening socket: the kernel ignores who else comes."""
    bed.camera.stop()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((bed.camera.host, bed.camera.port))
        listener.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield
    bed.camera.start()


def mute(bed: Bed) -> Iterator[None]:
    bed.camera.muted = True
    yield
    bed.camera.muted = False


def wrong_password(bed: Bed) -> Iterator[None]:
    camera = bed.camera
    camera.stop()
    camera.username, camera.password = "viewer", "changed"
    camera.start()
    bed.definition = {"username": "viewer", "password": "right"}
    yield
    camera.stop()
    camera.password = "right"
    camera.start()


def not_found(bed: Bed) -> Iterator[None]:
    right, bed.url = bed.url, bed.camera.url("/missing")
    yield
    bed.patch(url=right)


def fin(bed: Bed) -> Iterator[None]:
    bed.camera.kill(PATH)
    yield


def rst(bed: Bed) -> Iterator[None]:
    bed.camera.kill(PATH, reset=True)
    yield


def bye(bed: Bed) -> Iterator[None]:
    bed.camera.bye(PATH)
    yield


def power_cut(bed: Bed) -> Iterator[None]:
    bed.camera.stop()
    yield
    bed.camera.start()


def stall(bed: Bed) -> Iterator[None]:
    bed.camera.faults(PATH).stalled = True
    yield
    bed.camera.faults(PATH).stalled = False


def flapping(bed: Bed) -> Iterator[KeepGoing]:
    last_cut: list[float] = []

    def cut() -> None:
        last_cut.append(time.monotonic())
        bed.camera.kill(PATH)
        bed.notes["cuts"] = len(last_cut)

    def keep_going(seconds: float) -> None:
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            time.sleep(min(_FLAP_S, max(0.0, over - time.monotonic())))
            cut()

    cut()

    yield keep_going
    bed.look(lambda: _left(bed, STREAM, last_cut[-1]), BACKOFF_S)


def herd(bed: Bed) -> Iterator[None]:
    """50 cameras. It begins when they die."""
    clip = pattern_clip(frames=8, fps=_HERD_FPS, gop=2)
    paths = [f"/herd{number}" for number in range(_HERD)]
    recorder = bed.recorder
    names = bed.suffering = [path[1:] for path in paths]
    with Camera({path: Mount(clip) for path in paths}) as cameras:
        for path in paths:
            bed.add(path[1:], cameras.url(path))
        bed.wait(lambda: all(recorder.counted[name] for name in names), _HERD_START_S, "results of all 50")
        died_at = time.monotonic()
        cameras.stop()
        lost = bed.look(lambda: all(_left(bed, name, died_at) for name in names), 5.0)
        bed.shown_at = time.monotonic() if lost else None
        bed.notes["begun_at"] = died_at
        time.sleep(_HERD_AWAY_S)
        tried = {name: _tries(bed, name, died_at) for name in names}
        firsts = [times[0] for times in tried.values() if times]
        most = worst_window(firsts, _HERD_WINDOW * BACKOFF_S)
        bed.notes |= {
            "attempts": sum(map(len, tried.values())), "most_attempts_in_a_tenth_of_the_pause": most,
            "attempts_spread_over_s": round(max(firsts, default=0) - min(firsts, default=0), 3),
        }  # fmt: skip
        if most > _HERD_SHARE * _HERD:
            bed.complaints.append(f"{most} of {_HERD} cameras were tried within a tenth of the pause")
        cameras.start()
        back_from = time.monotonic()
        bed.notes["ended_at"] = back_from
        bed.look(lambda: all(recorder.good_since(name, back_from) for name in names), 30.0)
        backs = [recorder.good_since(name, back_from) for name in names]
        if all(backs):
            bed.back_at = max(result.at for result in backs if result is not None)
        yield
        for name in names:
            bed.remove(name)


def _tries(bed: Bed, stream: str, since: float) -> list[float]:
    """When it was tried again."""
    return [change.at for change in bed.recorder.changes[stream] if change.at > since and change.state == "connecting"]


def _left(bed: Bed, stream: str, since: float) -> bool:
    return any(change.at > since and change.state == "backoff" for change in bed.recorder.changes[stream])


# What the packets carry.


def loss5(bed: Bed) -> Iterator[None]:
    bed.camera.faults(PATH).loss = 0.05
    yield
    bed.camera.faults(PATH).loss = 0.0


def loss30(bed: Bed) -> Iterator[None]:
    bed.camera.faults(PATH).loss = 0.3
    yield
    bed.camera.faults(PATH).loss = 0.0


def reorder(bed: Bed) -> Iterator[None]:
    bed.camera.faults(PATH).reorder = 0.33
    yield
    bed.camera.faults(PATH).reorder = 0.0


def corrupt(bed: Bed) -> Iterator[None]:
    before = bed.recorder.torn[STREAM]
    sent = sum(1 for frame in bed.camera.sent(PATH) if frame.harmed)
    bed.camera.faults(PATH).corrupt = 0.02
    yield
    bed.camera.faults(PATH).corrupt = 0.0
    bed.settle()
    bed.notes["frames_harmed"] = sum(1 for frame in bed.camera.sent(PATH) if frame.harmed) - sent
    bed.notes["unreadable_results"] = bed.recorder.torn[STREAM] - before


def damaged_file(bed: Bed) -> Iterator[None]:
    path = bed.folder / f"damaged.{'264' if bed.case.codec == 'h264' else '265'}"
    path.write_bytes(damaged_stream(bed.clip(), random.Random(0)))
    bed.url = str(path)
    bed.definition = {"every_frame": True, "realtime": True}
    files = [] if bed.damaged is None else sorted(bed.damaged.glob("*.26[45]"))
    for number, file in enumerate(files):
        copy = bed.folder / file.name
        copy.write_bytes(file.read_bytes())
        bed.add(f"damaged{number}", str(copy), every_frame=True, realtime=True)
    yield
    for number, file in enumerate(files):
        stream = f"damaged{number}"
        if not bed.look(lambda s=stream: _stopped(bed, s), _FILE_S):  # type: ignore[misc]
            bed.complaints.append(f"{file.name} has not come to its end within {_FILE_S:g} s")
        ledger = bed.ledger(stream)
        bed.notes[file.name] = f"{ledger['completed']} of {ledger['received']} frames shown"


def _stopped(bed: Bed, stream: str) -> bool:
    change = bed.recorder.state(stream)
    return change is not None and change.state == "stopped"


def damaged_stream(clip: Path, rng: random.Random) -> bytes:
    """The clip's coded pictures as a byte stream, twice over: some missing, some cut, some overwritten."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        to_annexb = av.BitStreamFilterContext(f"{stream.codec_context.name}_mp4toannexb", stream)
        packets = [bytes(out) for packet in container.demux(stream) if packet.size for out in to_annexb.filter(packet)]
    out = bytearray()
    for number, data in enumerate(packets * 2):
        for nal in split_annexb(data):
            match rng.randrange(6) if number % 10 and len(nal) > 100 else None:
                case 0:
                    continue
                case 1:
                    nal = nal[: len(nal) // 2]
                case 2:
                    at = rng.randrange(20, len(nal) - 8)
                    nal = nal[:at] + rng.randbytes(8) + nal[at + 8 :]
            out += b"\0\0\0\1" + nal
    return bytes(out)


def resolution(bed: Bed) -> Iterator[None]:
    """Same shape, so that the model goes on reading the pattern."""
    began = time.monotonic()
    bed.camera.switch(PATH, bed.clip(width=2 * WIDTH, height=2 * HEIGHT))
    yield
    wide = next((r for r in list(bed.recorder.results[STREAM]) if r.at > began and r.width == 2 * WIDTH), None)
    if wide is None:
        bed.complaints.append("no result has the new size")
    else:
        bed.notes["new_size_after_s"] = round(wide.at - began, 2)
    bed.camera.switch(PATH, bed.clip())


def _codec(bed: Bed, other: str) -> Iterator[None]:
    bed.camera.switch(PATH, pattern_clip(frames=30, fps=FPS, codec=other, gop=10))  # type: ignore[arg-type]
    yield


def codec_to_hevc(bed: Bed) -> Iterator[None]:
    return _codec(bed, "hevc")


def codec_to_h264(bed: Bed) -> Iterator[None]:
    return _codec(bed, "h264")


def late_sets(bed: Bed) -> Iterator[None]:
    bed.camera.faults(PATH).withhold_sets = 1
    yield
    bed.camera.faults(PATH).withhold_sets = 0


def nothing(bed: Bed) -> Iterator[None]:
    yield


def frozen(bed: Bed) -> Iterator[None]:
    bed.camera.switch(PATH, _frozen_clip(bed))
    yield
    bed.camera.switch(PATH, bed.clip())


def _frozen_clip(bed: Bed) -> Path:
    picture: npt.NDArray[np.uint8] = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    draw(picture, 7, 0.7)
    return coded("frozen-1", [picture] * 30, width=WIDTH, height=HEIGHT, fps=FPS, codec=bed.case.codec, gop=10)


# Clocks.


def pts_forward(bed: Bed) -> Iterator[None]:
    bed.camera.jump(PATH, _JUMP_S)
    yield


def pts_back(bed: Bed) -> Iterator[None]:
    bed.camera.jump(PATH, -_JUMP_S)
    yield


def pts_small_steps(bed: Bed) -> Iterator[KeepGoing]:
    def keep_going(seconds: float) -> None:
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            bed.camera.jump(PATH, -2 / FPS)
            time.sleep(3 / FPS)

    yield keep_going


def _mounted_anew(bed: Bed, mount: Mount) -> None:
    bed.camera.stop()
    bed.camera.mounts[PATH] = mount
    bed.camera.start()


def lying_rate(bed: Bed) -> Iterator[None]:
    _mounted_anew(bed, Mount(pattern_clip(frames=50, fps=25.0, codec=bed.case.codec, gop=10), fps=8.0))
    yield


def wrong_reports(bed: Bed) -> Iterator[None]:
    _mounted_anew(bed, Mount(bed.clip(), clock_offset_s=6 * _JUMP_S, sender_report_interval_s=0.5))
    yield


# A camera that is none of ours.


def gst_killed(bed: Bed) -> Iterator[None]:
    assert bed.gst is not None
    bed.gst.process.kill()
    bed.gst.process.wait()
    yield
    bed.restart_gst()


def gst_stopped(bed: Bed) -> Iterator[None]:
    assert bed.gst is not None
    os.kill(bed.gst.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(bed.gst.process.pid, signal.SIGCONT)


def gst_password(bed: Bed) -> Iterator[None]:
    bed.restart_gst(username="viewer", password="right")
    bed.definition = {"username": "viewer", "password": "wrong"}
    yield
    bed.patch(password="right")


def gst_not_found(bed: Bed) -> Iterator[None]:
    right = bed.url
    bed.url = right.rpartition("/")[0] + "/missing"
    yield
    bed.patch(url=right)


def refusal(bed: Bed, method: str, path: str, body: dict[str, object] | None = None) -> str | None:
    """The server's words if it does not do what is asked; None if it does."""
    try:
        bed.server.ask(method, path, body)
    except BenchError as error:
        return str(error)
    return None
