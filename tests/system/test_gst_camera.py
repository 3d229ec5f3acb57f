"""The cameras in processes of their own, ours and Debian's, seen by libavformat: what later tests build on."""

from __future__ import annotations

import itertools

import av.error
import pytest

from server.testing.synthetic import make_clip
from server.testing.viewer import watch

pytestmark = pytest.mark.system
PASSWORD = "p@ss:w/rd"


@pytest.mark.parametrize(
    ("kind", "codec", "transport"),
    [
        ("own", "h264", "udp"),
        ("own", "hevc", "tcp"),
        ("gst", "h264", "tcp"),
        ("gst", "h264", "udp"),
        ("gst", "hevc", "tcp"),
        ("gst", "hevc", "udp"),
    ],
)
def test_clip_plays_in_order_over_its_loop(start_camera, kind, codec, transport):
    clip = make_clip(width=320, height=192, fps=50, frames=25, gop=5, codec=codec)
    camera = start_camera({"door": clip}, kind=kind, username="us@er", password=PASSWORD)
    seen = [frame for frame in watch(camera.url("door"), frames=35, transport=transport) if frame.number is not None]
    numbers = [frame.number for frame in seen]
    assert len(numbers) >= 30
    assert all(after == (before + 1) % 25 for before, after in itertools.pairwise(numbers)), numbers
    times = [frame.pts_s for frame in seen if frame.pts_s is not None]
    assert all(after - before == pytest.approx(0.02, abs=0.002) for before, after in itertools.pairwise(times))


@pytest.mark.parametrize("kind", ["own", "gst"])
@pytest.mark.parametrize("auth", ["basic", "digest"])
def test_only_the_right_password_opens(start_camera, kind, auth):
    clip = make_clip(width=320, height=192, fps=50, frames=50, gop=10)
    camera = start_camera({"door": clip}, kind=kind, username="us@er", password=PASSWORD, auth=auth)
    assert watch(camera.url("door"), frames=1)
    with pytest.raises(av.error.HTTPUnauthorizedError):
        watch(camera.url("door", credentials=False), frames=1)
    with pytest.raises(av.error.HTTPUnauthorizedError):
        watch(camera.url("door").replace("us%40er", "other"), frames=1)


def test_own_camera_obeys_commands(start_camera):
    clip = make_clip(width=320, height=192, fps=50, frames=50, gop=10)
    camera = start_camera({"door": clip})
    assert camera.tell("clients", path="/door") == 0
    camera.tell("faults", path="/door", stalled=True)
    with pytest.raises(RuntimeError, match="no fault 'nonsense'"):
        camera.tell("faults", path="/door", nonsense=1)
    assert watch(camera.url("door"), frames=1, open_timeout_s=1, read_timeout_s=0.5) == []
    camera.tell("faults", path="/door", stalled=False)
    assert watch(camera.url("door"), frames=1)
    (newest,) = camera.tell("sent", path="/door", newest=1)
    assert newest["packets"] >= 1
