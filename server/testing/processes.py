"""Cameras in processes of their own, for tests: ours and Debian's gst-rtsp-server. Both loop MP4 clips."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

SYSTEM_PYTHON = "/usr/bin/python3"
GST_PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-rtsp"
)
_GST_PROBE = """
import gi
for name in ("Gst", "GstApp", "GstRtsp", "GstRtspServer"):
    gi.require_version(name, "1.0")
from gi.repository import Gst
Gst.init(None)
missing = [name for name in ("qtdemux", "h264parse", "h265parse", "rtph264pay", "rtph265pay", "appsrc")
           if Gst.ElementFactory.find(name) is None]
raise SystemExit(", ".join(missing) or 0)
"""
_STOP_S = 5.0


@functools.cache
def gst_missing() -> str | None:
    """Why the camera of gst-rtsp-server cannot run here, with the names of Debian's packages; None if it can."""
    try:
        probe = subprocess.run([SYSTEM_PYTHON, "-c", _GST_PROBE], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return f"{SYSTEM_PYTHON} does not run; Debian packages needed: {GST_PACKAGES}"
    return None if probe.returncode == 0 else f"gst-rtsp-server is missing; Debian packages needed: {GST_PACKAGES}"


class CameraProcess:
    """A camera in a process; ends with the `with` block. `mounts`: name (without slash) -> clip."""

    def __init__(
        self,
        mounts: Mapping[str, Path],
        *,
        username: str | None = None,
        password: str | None = None,
        auth: str = "digest",
        kind: Literal["own", "gst"] = "own",
        options: tuple[str, ...] = (),
    ) -> None:
        self._mounts = list(mounts)
        self._user = f"{quote(username, safe='')}:{quote(password or '', safe='')}@" if username else ""
        if kind == "own":
            self._command = [sys.executable, "-m", "server.testing.camera", "--port", "0", "--control", *options]
        else:
            self._command = [SYSTEM_PYTHON, str(Path(__file__).with_name("gst_camera.py")), *options]
        for name, clip in mounts.items():
            self._command += ["--mount", f"{name}={clip}"]
        if username is not None:
            self._command += ["--user", username, "--auth", auth]
        self._environment = os.environ | {"CAMERA_PASSWORD": password or ""}
        self._urls: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )
        assert self.process.stdout is not None
        for name in self._mounts:
            line = self.process.stdout.readline().strip()
            if not line:
                raise RuntimeError(f"the camera did not start: exit status {self.process.wait(_STOP_S)}")
            self._urls[name] = line
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(_STOP_S)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def url(self, name: str, *, credentials: bool = True) -> str:
        """The address; with `credentials` and where there are any, percent-encoded user information in it."""
        bare = self._urls[name]
        return bare.replace("rtsp://", f"rtsp://{self._user}", 1) if credentials else bare

    def tell(self, do: str, **arguments: Any) -> Any:
        """A command to our own camera (`server.testing.camera --control`); gives its value, raises RuntimeError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if not answer["ok"]:
            raise RuntimeError(answer["error"])
        return answer["value"]
