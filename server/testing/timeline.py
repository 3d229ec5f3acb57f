"""When a looping clip sends which frame: a clock that never jumps back, over loops and changes of clip.

Pure: ticks of 1/90000 s since the mount began; the mount turns them into times.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.testing.clip import CLOCK_HZ, Clip, CodedFrame


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One frame with its place in endless time."""

    frame: CodedFrame
    index: int
    """Of the frame within its clip, decoding order."""
    dts: int
    """When it is sent."""
    pts: int


class Timeline:
    """`fps` None plays the clip's own times; else its frames follow each other evenly at that rate."""

    def __init__(self, clip: Clip, fps: float | None = None, phase_s: float = 0.0) -> None:
        """`phase_s`: so far inside the clip it stands at tick 0."""
        self._start(clip, fps, 0)
        self._turn_start = -(round(phase_s * CLOCK_HZ) % self._duration)
        self.skip_to(0)

    def _start(self, clip: Clip, fps: float | None, turn_start: int) -> None:
        self.clip = clip
        self._step = CLOCK_HZ / fps if fps else None
        self._duration = round(len(clip.frames) * self._step) if self._step else clip.duration
        self._turn_start = turn_start
        self._index = 0
        self.delay = max(self._times(frame, i)[1] - self._times(frame, i)[0] for i, frame in enumerate(clip.frames))

    def _times(self, frame: CodedFrame, index: int) -> tuple[int, int]:
        if self._step:
            return round(index * self._step), round(frame.rank * self._step)
        return frame.dts, frame.pts

    def peek(self) -> Scheduled:
        """The next frame."""
        frame = self.clip.frames[self._index]
        dts, pts = self._times(frame, self._index)
        return Scheduled(frame, self._index, self._turn_start + dts, self._turn_start + pts)

    def advance(self) -> None:
        self._index += 1
        if self._index == len(self.clip.frames):
            self._index = 0
            self._turn_start += self._duration

    def skip_to(self, ticks: int) -> None:
        """Pass over all frames that are due before `ticks`, whole turns at once."""
        turns = (ticks - self.peek().dts) // self._duration
        if turns > 0:
            self._turn_start += turns * self._duration
        while self.peek().dts < ticks:
            self.advance()

    def switch(self, clip: Clip, fps: float | None) -> None:
        """Go on with another clip, from its first frame, when the next frame of this one would be due.

        Its presentation times follow all those of the old clip."""
        upcoming = self.peek()
        old_delay = self.delay
        self._start(clip, fps, upcoming.dts)
        self._turn_start += max(0, old_delay - self._times(clip.frames[0], 0)[1])
