"""How many damaged frames are noticed where bits were flipped on the way and no packet is missing.

Such damage is rare: checksums of Ethernet, UDP and TCP let few of them through, so it comes from a camera's or router's
memory. But it can decode in silence, so nobody else knows of it: what the decoder notices is all that there is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from server.ingest.decoder import Decoder, Shown
from server.ingest.nal import START_CODE, is_reference, nal_type
from server.ingest.source import AccessUnit, StreamInfo
from server.testing.footage import FootageMissing, bikes
from server.testing.synthetic import Codec, reencode
from server.testing.truth.clips import pattern_clip

GOP = 25
_SPARED_BYTES = 3
"""NAL headers and the first flags of the slice stay whole, as in `server.testing.faults`."""
ONE_BIT, FOUR_BYTES = "1 bit", "4 bytes of a packet"
DAMAGES = (ONE_BIT, FOUR_BYTES)
_BYTES = 4
_PACKET_BYTES = 1400
_VISIBLE = 3.0
"""Grey levels: a picture counts as changed if the mean of any 16x16 block is off by more than this."""
Picture = npt.NDArray[np.uint8]
_CODECS: tuple[Codec, ...] = ("h264", "hevc")


def flips(trials: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """For each stream and each damage: so many frames damaged, one at a time, and what became of the frame."""
    return [measure(name, path, codec, damage, trials, seed) for name, path, codec in _streams() for damage in DAMAGES]


def _streams() -> Iterator[tuple[str, Path, Codec]]:
    for codec in _CODECS:
        for b_frames in (0, 2):
            suffix = f" B{b_frames}" if b_frames else ""
            pattern = pattern_clip(frames=100, fps=25, codec=codec, b_frames=b_frames, gop=GOP)
            yield f"{codec} pattern{suffix}", pattern, codec
            try:
                street = reencode(bikes(), width=640, height=272, frames=100, codec=codec, gop=GOP, b_frames=b_frames)
            except FootageMissing:
                continue
            yield f"{codec} street{suffix}", street, codec
    hashed = pattern_clip(frames=100, fps=25, codec="hevc", gop=GOP, picture_hash=True)
    yield "hevc pattern with picture hashes", hashed, "hevc"


def measure(name: str, path: Path, codec: Codec, damage: str, trials: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    info, units = read_units(path, codec)
    clean = _decode(info, units)
    noticed = harmless = missed = 0
    for _ in range(trials):
        hit = rng.randrange(len(units))
        # From the keyframe before, through the frame that is hit: what follows is judged by the same rules.
        start = max(index for index in range(hit + 1) if units[index].keyframe)
        end = next((index for index in range(hit + 1, len(units)) if units[index].keyframe), len(units))
        shown = _decode(
            info, [*units[start:hit], damaged(units[hit], codec, damage, rng), *units[hit + 1 : end]], start
        )
        if hit not in shown:
            noticed += 1
        elif changed(shown[hit], clean[hit]):
            missed += 1
        else:
            harmless += 1
    return {
        "stream": name, "damage": damage, "hit": trials, "noticed": noticed, "harmless": harmless, "missed": missed,
        "rate": noticed / max(1, noticed + missed),
    }  # fmt: skip


def read_units(path: Path, codec: Codec) -> tuple[StreamInfo, list[AccessUnit]]:
    """Access units as the RTSP source gives them: Annex B, parameter sets in front of each keyframe."""
    units: list[AccessUnit] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        to_annexb = av.BitStreamFilterContext(f"{codec}_mp4toannexb", stream)
        for packet in container.demux(stream):
            for out in to_annexb.filter(packet if packet.size else None):
                data, number = bytes(out), len(units)
                units.append(
                    AccessUnit(data, float((out.pts or 0) * out.time_base), number / 25, number / 25, out.is_keyframe,
                               is_reference(codec, data))
                )  # fmt: skip
    return StreamInfo(codec), units


def damaged(unit: AccessUnit, codec: Codec, damage: str, rng: random.Random) -> AccessUnit:
    """The unit with one bit of its slices' data flipped, or with some bytes of one packet overwritten."""
    data = bytearray(unit.data)
    first = min(_slice_data(unit.data, codec), len(data) - 1)
    if damage == ONE_BIT:
        data[rng.randrange(first, len(data))] ^= 1 << rng.randrange(8)
        return replace(unit, data=bytes(data))
    start = rng.randrange(first, len(data))
    for _ in range(_BYTES):
        data[rng.randrange(start, min(start + _PACKET_BYTES, len(data)))] ^= rng.randrange(1, 256)
    return replace(unit, data=bytes(data))


def changed(shown: Picture, clean: Picture) -> bool:
    """Whether one can see that a picture is not what it should be: by 16x16 blocks, rims left out."""
    height, width = (side // 16 * 16 for side in clean.shape)
    off = np.abs(shown[:height, :width].astype(np.int16) - clean[:height, :width])
    return bool(off.reshape(height // 16, 16, width // 16, 16).mean(axis=(1, 3)).max() > _VISIBLE)


def _slice_data(data: bytes, codec: Codec) -> int:
    """Where the bits that make the picture begin: the parameter sets in front are left alone."""
    slices = range(1, 6) if codec == "h264" else range(32)
    begin = data.find(START_CODE) + len(START_CODE)
    while nal_type(codec, data[begin:]) not in slices:
        begin = data.find(START_CODE, begin) + len(START_CODE)
    return begin + _SPARED_BYTES


def _decode(info: StreamInfo, units: Sequence[AccessUnit], first: int = 0) -> dict[int, Picture]:
    """Luma of the pictures that the server would show, by the place of their unit."""
    decoder = Decoder(info)
    verdicts = [verdict for place, unit in enumerate(units, first) for verdict in decoder.decode(place, unit)]
    return {
        verdict.seq: np.asarray(verdict.frame.to_ndarray(format="gray"), np.uint8)
        for verdict in [*verdicts, *decoder.drain()]
        if isinstance(verdict, Shown)
    }
