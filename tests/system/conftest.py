"""Fixtures of the system tests: cameras of both kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cameras import CameraProcess, gst_missing

StartCamera = Callable[..., CameraProcess]


@pytest.fixture
def start_camera() -> Iterator[StartCamera]:
    """`start_camera({"door": clip}, kind="own" | "gst", ...)` -> a running CameraProcess, ended with the test.

    Skips the test if the kind is gst and Debian's packages for it are missing."""
    with ExitStack() as stack:

        def start(mounts: dict[str, Path], **options: Any) -> CameraProcess:
            if options.get("kind") == "gst" and (reason := gst_missing()):
                pytest.skip(reason)
            return stack.enter_context(CameraProcess(mounts, **options))

        yield start
