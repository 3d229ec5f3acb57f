"""FFmpeg's RTSP output through the relay: frames in order, over TCP and UDP, and a log that knows when they went."""

from __future__ import annotations

import itertools

import pytest

from server.ingest.rtsp.source import RtspSource
from server.testing.relay import Relay
from server.testing.synthetic import make_clip

pytestmark = pytest.mark.system
FPS = 25


def test_ffmpegs_frames_are_passed_on_and_logged():
    clip = make_clip(width=320, height=192, fps=FPS, frames=25, gop=5)
    with Relay() as relay:
        relay.publish("door", clip)
        for transport in ("tcp", "udp"):
            source = RtspSource(relay.url("door"), transport=transport)
            assert source.open().transport == transport
            units = list(itertools.islice((unit for unit in source.units() if unit is not None), 30))
            source.close()
            assert not any(unit.damaged for unit in units[1:])
            steps = [(b.pts or 0) - (a.pts or 0) for a, b in itertools.pairwise(units)]
            assert steps == pytest.approx([1 / FPS] * 29, abs=1e-4)
            by_arrival = {passed.place: passed for passed in relay.passed("door")}
            newest = max(place for place, passed in by_arrival.items() if passed.began_at <= units[-1].arrived_at)
            for back, unit in enumerate(reversed(units)):
                passed = by_arrival[newest - back]
                assert passed.began_at <= unit.arrived_at
                assert unit.arrived_at - unit.arrival_uncertainty_s <= passed.sent_at + 0.02


def test_what_cannot_be_published_is_told(tmp_path):
    (tmp_path / "none.mp4").write_bytes(b"")
    with Relay() as relay, pytest.raises(ChildProcessError, match="does not publish door"):
        relay.publish("door", tmp_path / "none.mp4")
