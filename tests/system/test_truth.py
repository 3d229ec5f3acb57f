"""The whole server against the truth, the short form of `python -m server.testing.truth`: for each result the frame is
the one that it claims to be, its picture is whole, and its latency and its capture time are what they were."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.ingest.decoder import Decoder, Shown
from server.ingest.libav import LibavSource
from server.testing.camera import Camera, Mount
from server.testing.processes import gst_missing
from server.testing.truth.cases import FPS, Case, Outcome, run
from server.testing.truth.clips import pattern_clip
from server.testing.truth.judge import TOLERANCE_S
from server.testing.truth.pattern import read
from server.testing.truth.rig import running_rig

pytestmark = pytest.mark.system

SECONDS = 4.0
CASES = [
    Case("own", "h264", "udp", "native", b_frames=2, loss=0.02, reorder=0.05),
    Case("own", "h264", "udp", "libav", b_frames=2, loss=0.02, reorder=0.05),
    Case("own", "hevc", "tcp", "native"),
    Case("own", "h264", "tcp", "libav", fps=10.0),
    Case("own", "h264", "tcp", "native", clock_offset_s=-7200.0),
    Case("gst", "hevc", "udp", "native"),
    Case("ffmpeg", "h264", "tcp", "native"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """All of them in one server at once."""
    log: Path = tmp_path_factory.mktemp("truth") / "server.log"
    cases = [case for case in CASES if case.sender != "gst" or not gst_missing()]
    with running_rig(log=log) as rig:
        yield {outcome.case.name: outcome for outcome in run(rig, cases, SECONDS)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_are_true(outcomes: dict[str, Outcome], case: Case) -> None:
    if case.sender == "gst" and (reason := gst_missing()):
        pytest.skip(reason)
    outcome = outcomes[case.name]
    assert outcome.faults == []
    verdict = outcome.verdict
    assert verdict.results >= (10 if outcome.held_up_s < TOLERANCE_S else 1)
    dropped = outcome.ledger["dropped"].get("ingest", {})
    assert bool(dropped.get("damaged")) == bool(case.loss), dropped
    stated = len(verdict.capture_errors)
    match case:
        case Case(client="libav") | Case(clock_offset_s=-7200.0):
            assert stated == 0, "there is nothing that a capture time could be known by"
        case Case(sender="own"):
            assert stated == verdict.results


def test_losses_while_libavformat_opens_damage_what_it_keeps() -> None:
    """It opens a stream by reading of it, and says of losses then only that there are some."""
    mount = Mount(pattern_clip(frames=50, fps=FPS, codec="hevc", gop=50), start_at_keyframe=True)
    with Camera({"/live": mount}) as camera:

        def lose_the_third_frames_first_packet() -> None:
            while camera.frames_sent("/live") < 2:
                time.sleep(0.005)
            mount.faults.lose_next = 1

        losing = threading.Thread(target=lose_the_third_frames_first_packet)
        losing.start()
        source = LibavSource(camera.url("/live"), transport="udp")
        info = source.open()
        losing.join()
        units = list(itertools.islice((unit for unit in source.units() if unit is not None), 15))
        source.close()
    assert sum(unit.lost_packets for unit in units) == 1
    decoder = Decoder(info)
    verdicts = [verdict for seq, unit in enumerate(units) for verdict in decoder.decode(seq, unit)]
    shown = [verdict.frame for verdict in verdicts if isinstance(verdict, Shown)]
    assert [read(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)) for frame in shown].count(None) == 0
