"""How much earlier a result leaves by our RTSP client than through libavformat, and what the server adds to a frame."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np

from server.ingest.clocks import instant
from server.testing.camera import Mount
from server.testing.synthetic import Codec
from server.testing.truth.clips import pattern_clip
from server.testing.truth.judge import Verdict, judge
from server.testing.truth.rig import Rig
from server.testing.truth.senders import OwnSender

FPS = 10.0
_CODECS: tuple[Codec, ...] = ("h264", "hevc")
_CLIENTS = ("native", "libav")


def compare(rig: Rig, seconds: float) -> list[dict[str, Any]]:
    """For each codec both clients watch one camera at 10 frames/s at the same time, over TCP; times in milliseconds.
    BenchError if one of them gives no result."""
    return [_compare(rig, codec, seconds) for codec in _CODECS]


def _compare(rig: Rig, codec: Codec, seconds: float) -> dict[str, Any]:
    clip = pattern_clip(frames=round(10 * FPS), fps=FPS, codec=codec, gop=10)
    with ExitStack() as stack:
        sender = stack.enter_context(OwnSender({codec: Mount(clip)}))
        streams = {client: f"compare-{codec}-{client}" for client in _CLIENTS}
        for client, stream in streams.items():
            rig.add(stream, sender.url(codec), transport="tcp", rtsp_client=client)
        rig.wait_for(list(streams.values()))
        time.sleep(seconds)
        for stream in streams.values():
            rig.remove(stream)
        verdicts = {
            client: judge(rig.received[stream], sender.sent(codec), instant().offset)
            for client, stream in streams.items()
        }
    native, libav = verdicts["native"], verdicts["libav"]
    earlier = _earlier(native, libav)
    decode = _decode_alone(clip, codec)
    total, inference = _median(native.from_first_packet), _median(native.inference)
    return {
        "codec": codec,
        "frames": len(earlier),
        "earlier_ms_p5": float(np.percentile(earlier, 5)),
        "earlier_ms_p50": float(np.percentile(earlier, 50)),
        "earlier_ms_p95": float(np.percentile(earlier, 95)),
        "intervals": float(np.percentile(earlier, 50)) * FPS / 1e3,
        "first_packet_to_result_ms": total,
        "decode_ms": decode,
        "inference_ms": inference,
        "remains_ms": total - decode - inference,
        "faults": native.faults() + libav.faults(),
    }


def _earlier(native: Verdict, libav: Verdict) -> list[float]:
    """Milliseconds by which the native client's result was at the WebSocket client earlier, for each frame of both."""
    return [
        (libav.frames[place].at - native.frames[place].at) * 1e3
        for place in sorted(native.frames.keys() & libav.frames.keys())
    ]


def _decode_alone(clip: Path, codec: str) -> float:
    """Milliseconds that libavcodec takes for a frame of the clip with one thread, as the server uses it (median)."""
    times = []
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "NONE"
        for packet in container.demux(stream):
            begun = time.perf_counter()
            if packet.decode():
                times.append(time.perf_counter() - begun)
    return _median(times)


def _median(seconds: list[float]) -> float:
    return float(np.median(seconds)) * 1e3
