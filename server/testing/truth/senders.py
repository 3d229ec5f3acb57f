"""Three kinds of senders that play a clip live and log when each frame went out: what results are held against.

All are on this machine, so that their CLOCK_MONOTONIC is the server's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from server.testing.camera import Camera, Mount
from server.testing.clip import load_clip
from server.testing.processes import CameraProcess
from server.testing.relay import Relay

__all__ = ["FfmpegSender", "GstSender", "OwnSender", "Sender", "Sent"]


@dataclass(frozen=True, slots=True)
class Sent:
    """The truth about one frame."""

    number: int
    """The counter in its picture."""
    rtp_timestamp: int
    began_at: float
    """CLOCK_MONOTONIC seconds before its first packet was sent."""
    sent_at: float
    """CLOCK_MONOTONIC seconds after its last packet was sent."""
    captured_unix: float | None
    """By the sender's clock and its sender reports; None: they do not let us know exactly."""
    harmed: bool = False
    """Packets of it were lost on purpose."""
    exact: bool = True
    """False: `sent_at` was taken before the packet went to the kernel, so that a busy machine makes it too early."""


class Sender(Protocol):
    def url(self, name: str) -> str: ...

    def sent(self, name: str) -> list[Sent]:
        """In the order in which they were sent."""
        ...


class OwnSender(AbstractContextManager["OwnSender"]):
    """`server.testing.camera`, in this process. `mounts`: name -> what it plays."""

    def __init__(self, mounts: Mapping[str, Mount]) -> None:
        self.camera = Camera({f"/{name}": mount for name, mount in mounts.items()})

    def __enter__(self) -> Self:
        self.camera.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.camera.close()

    def url(self, name: str) -> str:
        return self.camera.url(f"/{name}")

    def sent(self, name: str) -> list[Sent]:
        frames = load_clip(self.camera.mounts[f"/{name}"].clip).frames
        return [
            Sent(
                frames[sent.index].rank, sent.rtp_timestamp, sent.began_at, sent.sent_at, sent.captured_unix,
                sent.harmed > 0,
            )
            for sent in self.camera.sent(f"/{name}")
        ]  # fmt: skip


class GstSender(AbstractContextManager["GstSender"]):
    """Debian's gst-rtsp-server, in a process of its own (see `processes.gst_missing`)."""

    def __init__(self, clips: Mapping[str, Path]) -> None:
        self._clips = dict(clips)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.NamedTemporaryFile("r", prefix="gst-sent-", suffix=".jsonl"))
            options = ("--log", self._log.name)
            self._process = stack.enter_context(CameraProcess(self._clips, kind="gst", options=options))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def url(self, name: str) -> str:
        return self._process.url(name)

    def sent(self, name: str) -> list[Sent]:
        frames = load_clip(self._clips[name]).frames
        lines = (json.loads(line) for line in Path(self._log.name).read_text().splitlines())
        return [
            Sent(
                frames[line["index"]].rank, line["rtp"], line["began"], line["sent"], line["captured"], exact=False
            )
            for line in lines
            if line["path"] == name
        ]  # fmt: skip


class FfmpegSender(AbstractContextManager["FfmpegSender"]):
    """FFmpeg's RTSP output, published to a relay that passes its packets on as they are."""

    def __init__(self, clips: Mapping[str, Path]) -> None:
        self._relay = Relay()
        self._clips = dict(clips)

    def __enter__(self) -> Self:
        self._relay.__enter__()
        for name, clip in self._clips.items():
            self._relay.publish(name, clip)
        return self

    def __exit__(self, *exc: object) -> None:
        self._relay.close()

    def url(self, name: str) -> str:
        return self._relay.url(name)

    def sent(self, name: str) -> list[Sent]:
        frames = load_clip(self._clips[name]).frames
        # FFmpeg pairs the time at which it opened its output with the first frame, which we cannot know exactly.
        return [
            Sent(frames[passed.place % len(frames)].rank, passed.rtp_timestamp, passed.began_at, passed.sent_at, None)
            for passed in self._relay.passed(name)
        ]
