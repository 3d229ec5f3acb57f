"""The helper process of a pipeline: started, heard, and killed when it goes silent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from server.addresses import masked_url
from server.ingest.gst import helper
from server.ingest.gst.helper import HEADER
from server.ingest.source import Reason, SourceError

PYTHON = "/usr/bin/python3"
"""GStreamer's bindings belong to the system's Python."""
MAX_PAYLOAD_BYTES = 256 << 20
_READ_BYTES = 1 << 20
_PARTING_S = 0.5


class Message(NamedTuple):
    kind: int
    keyframe: bool
    pts: float
    """Seconds; NaN: none."""
    arrived_at: float
    received_unix: float
    payload: bytes


class GstProcess:
    """Used by one thread."""

    def __init__(
        self, pipeline: str, properties: dict[str, dict[str, Any]] | None = None, *, video: bool = True
    ) -> None:
        """`properties`: of elements by their names, for values that no quoting is right for. `video`: appsink is told
        which kinds of video are understood here; False: it takes any bytes. Raises SourceError if the process cannot
        be started."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("YOLOV9_")}
        try:
            self._process = subprocess.Popen(
                [PYTHON, "-I", str(Path(helper.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a signal to the server's group is not for it
            )
        except OSError as error:
            raise SourceError(Reason.ERROR, f"{PYTHON} cannot be run: {error.strerror}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        self._buffer = bytearray()
        task = {"pipeline": pipeline, "properties": properties or {}, "video": video}
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, deadline: float) -> Message | None:
        """The next message, None at the `deadline` (monotonic). Raises SourceError for what the pipeline reports, and
        if the process is gone."""
        while (message := self._next()) is None:
            if not select.select([self._output], [], [], max(deadline - time.monotonic(), 0.0))[0]:
                return None
            data = os.read(self._output, _READ_BYTES)
            if not data:
                raise SourceError(Reason.PROCESS_LOST, "the pipeline's process is gone")
            self._buffer += data
        if message.kind == helper.ERROR:
            said = json.loads(message.payload)
            # Elements quote their properties, addresses with passwords among them.
            raise SourceError(Reason(said["reason"]), masked_url(f"gst: {said['detail']}").removeprefix("gst: "))
        return message

    def close(self) -> None:
        """In order, or by SIGKILL; within a second."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        try:
            process.wait(_PARTING_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """It and whatever it may have started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _next(self) -> Message | None:
        if len(self._buffer) < HEADER.size:
            return None
        kind, flags, pts, arrived_at, received_unix, length = HEADER.unpack_from(self._buffer)
        if length > MAX_PAYLOAD_BYTES:
            raise SourceError(Reason.PROTOCOL, f"the pipeline gives frames of {length} bytes")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(memoryview(self._buffer)[HEADER.size : end])
        del self._buffer[:end]
        return Message(kind, bool(flags & helper.KEYFRAME), pts, arrived_at, received_unix, payload)
