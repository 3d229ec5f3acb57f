"""`--demo`: a real RTSP camera on loopback that plays real street footage, in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def demo_camera() -> Iterator[str]:
    """The RTSP address of a camera that runs as long as the context. UsageError if the footage is not installed."""
    from server.cli import UsageError
    from server.testing.footage import FootageMissing, bikes

    try:
        clip = bikes()
    except FootageMissing as error:
        raise UsageError(str(error)) from None
    command = [sys.executable, "-m", "server.testing.camera", "--mount", f"demo={clip}", "--port", "0", "--control"]
    # It ends when its standard input does: not even kill -9 of the server leaves it behind.
    # Ctrl-C goes to a terminal's whole process group; the camera must outlive the server's drain.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise UsageError(f"the demo camera did not start (exit status {process.wait(5)})")
        yield line.split()[-1]
    finally:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
