"""The decoded pictures that a camera's process still keeps, and JPEGs of them on request.

Kept are the frames that the server holds (by seq), the newest one decoded and the newest one that got a result: full
size, as the decoder gave them, so that keeping costs nothing. Nothing is encoded unless asked for.
A frame comes here only after the letterboxer is through with it, and is read by the encoder's thread alone from then
on: two threads that reformat the same frame crash PyAV.
"""

from __future__ import annotations

import io
import logging
import queue
import threading
from collections.abc import Callable

import av
import av.error
import numpy as np
import numpy.typing as npt
from PIL import Image

from server.ingest.wire import EncodeRequest
from yolov9.draw import draw_boxes
from yolov9.geometry import Letterbox
from yolov9.letterbox import Letterboxer, displayed_size

log = logging.getLogger("yolov9.ingest")

_WAITING_REQUESTS = 16
"""More than this many are answered with no picture at once."""


class Pictures:
    """May be used by all threads."""

    def __init__(self) -> None:
        self._held: dict[int, av.VideoFrame] = {}
        self._newest: av.VideoFrame | None = None
        self._completed: tuple[int, av.VideoFrame] | None = None
        self._lock = threading.Lock()

    def decoded(self, frame: av.VideoFrame) -> None:
        with self._lock:
            self._newest = frame

    def hold(self, seq: int, frame: av.VideoFrame) -> None:
        """The server gets this frame."""
        with self._lock:
            self._newest = self._held[seq] = frame

    def release(self, seq: int, completed: bool) -> None:
        """The server is through with it. The one completed last stays: that is the server's last result, though its
        seq may be lower than another's (with B frames a picture is shown after pictures that came later)."""
        with self._lock:
            frame = self._held.pop(seq, None)
            if frame is not None and completed:
                self._completed = seq, frame

    def find(self, seq: int | None, completed: bool) -> av.VideoFrame | None:
        """As `EncodeRequest` asks for it."""
        with self._lock:
            done = self._completed
            if seq is not None:
                return done[1] if done is not None and done[0] == seq else self._held.get(seq)
            if completed:
                return None if done is None else done[1]
            return self._newest


class Encoder:
    """Answers requests in a thread of its own, which begins with the first."""

    def __init__(self, pictures: Pictures, answer: Callable[[int, bytes], None]) -> None:
        """`answer(request id, JPEG)`; b"" where there is no such picture."""
        self._pictures = pictures
        self._answer = answer
        self._requests: queue.Queue[EncodeRequest] = queue.Queue(_WAITING_REQUESTS)
        self._thread: threading.Thread | None = None

    def submit(self, request: EncodeRequest) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
            self._thread.start()
        try:
            self._requests.put_nowait(request)
        except queue.Full:
            self._answer(request.id, b"")

    def _run(self) -> None:
        letterboxer = Letterboxer()
        while True:
            request = self._requests.get()
            frame = self._pictures.find(request.seq, request.completed)
            jpeg = b""
            if frame is not None:
                try:
                    jpeg = encode(frame, request, letterboxer)
                except (av.error.FFmpegError, ValueError, OSError, MemoryError) as error:
                    log.warning("a picture of %dx%d could not be encoded: %s", frame.width, frame.height, error)
            self._answer(request.id, jpeg)


def encode(frame: av.VideoFrame, request: EncodeRequest, letterboxer: Letterboxer) -> bytes:
    """JPEG of a frame or a part of it, upright, with the boxes drawn, at most `max_width` pixels wide."""
    source_width, source_height = displayed_size(frame)
    width = source_width
    if request.max_width is not None:
        shown = source_width if request.crop is None else max(request.crop[2] - request.crop[0], 1.0)
        width = min(source_width, max(round(source_width * request.max_width / shown), 1))
    height = max(round(source_height * width / source_width), 1)
    pixels = np.empty((height, width, 3), np.uint8)
    box = letterboxer.write(frame, pixels)
    image = Image.fromarray(_inside(pixels, box))
    if request.boxes:
        draw_boxes(image, [_scaled(b, box.scale_x, box.scale_y) for b in request.boxes])
    if request.crop is not None:
        image = _cut(image, request.crop, box)
    output = io.BytesIO()
    image.save(output, "JPEG", quality=min(max(request.quality, 1), 95))
    return output.getvalue()


def _inside(pixels: npt.NDArray[np.uint8], box: Letterbox) -> npt.NDArray[np.uint8]:
    """Rounding may have left a border of one pixel."""
    return pixels[box.top : box.top + box.scaled_height, box.left : box.left + box.scaled_width]


def _cut(image: Image.Image, crop: tuple[float, float, float, float], box: Letterbox) -> Image.Image:
    """The part of the picture, of at least one pixel."""
    x1, y1, x2, y2 = (round(c * s) for c, s in zip(crop, (box.scale_x, box.scale_y) * 2, strict=True))
    left, top = min(max(x1, 0), image.width - 1), min(max(y1, 0), image.height - 1)
    right, bottom = min(max(x2, left + 1), image.width), min(max(y2, top + 1), image.height)
    return image.crop((left, top, right, bottom))


def _scaled(
    box: tuple[float, float, float, float, str], scale_x: float, scale_y: float
) -> tuple[float, float, float, float, str]:
    x1, y1, x2, y2, text = box
    return x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y, text
