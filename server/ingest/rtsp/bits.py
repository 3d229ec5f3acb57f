"""Reading H.264/H.265 headers bit by bit: identifiers, picture size, layers. Pure; truncated data gives None."""

from __future__ import annotations

from dataclasses import dataclass

MAX_PARSED_BYTES = 4096
"""Sets are some tens of bytes; scaling lists and VUI make them hundreds."""

_HIGH_PROFILES = frozenset((44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244))


@dataclass(frozen=True, slots=True)
class SequenceInfo:
    """What a sequence parameter set says, as far as receiving needs it."""

    id: int
    width: int
    height: int
    sub_layers: int = 1
    """H.265: temporal sub-layers."""
    frame_num_bits: int = 0
    """H.264: length of `frame_num` in slice headers."""
    frame_num_gaps: bool = False
    """H.264: `frame_num` may jump without a loss."""
    separate_planes: bool = False
    """H.264: slices name their colour plane."""


class Bits:
    """A bit reader over the RBSP; reading past the end raises EOFError."""

    def __init__(self, rbsp: bytes) -> None:
        self._value = int.from_bytes(rbsp, "big")
        self._left = 8 * len(rbsp)

    def u(self, count: int) -> int:
        if count > self._left:
            raise EOFError
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def ue(self) -> int:
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 32:
                raise EOFError
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        code = self.ue()
        return code + 1 >> 1 if code & 1 else -(code >> 1)


def unescape(nal: bytes) -> bytes:
    """Without emulation prevention bytes (00 00 03 -> 00 00)."""
    return nal.replace(b"\0\0\3", b"\0\0") if b"\0\0\3" in nal else nal


def first_number(nal: bytes, header_bytes: int) -> int | None:
    """The ue(v) that a NAL unit begins with: the id of a picture parameter set."""
    try:
        return Bits(unescape(nal[:64])[header_bytes:]).ue()
    except EOFError:
        return None


def h264_sequence(nal: bytes) -> SequenceInfo | None:
    """An H.264 SPS with its NAL header."""
    try:
        return _h264_sequence(Bits(unescape(nal[:MAX_PARSED_BYTES])[1:]))
    except EOFError:
        return None


def h265_sequence(nal: bytes) -> SequenceInfo | None:
    """An H.265 SPS with its NAL header."""
    try:
        return _h265_sequence(Bits(unescape(nal[:MAX_PARSED_BYTES])[2:]))
    except EOFError:
        return None


def has_recovery_point(nal: bytes) -> bool:
    """Whether an H.264 SEI NAL unit holds a recovery point message (payload type 6)."""
    data = unescape(nal[:MAX_PARSED_BYTES])
    position, size = 1, len(data)
    while position + 2 < size:
        numbers = []
        for _ in range(2):  # payload type, payload size
            number = 0
            while position < size and data[position] == 0xFF:
                number += 255
                position += 1
            if position >= size:
                return False
            numbers.append(number + data[position])
            position += 1
        if numbers[0] == 6:
            return True
        position += numbers[1]
    return False


def _h264_sequence(bits: Bits) -> SequenceInfo:
    profile = bits.u(8)
    bits.u(16)  # constraint flags, level
    identifier = bits.ue()
    chroma = 1
    separate = False
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        if chroma == 3:
            separate = bool(bits.u(1))
            chroma = 0 if separate else 3  # separate planes are cropped like monochrome
        bits.ue(), bits.ue(), bits.u(1)  # bit depths, lossless flag
        if bits.u(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    frame_num_bits = bits.ue() + 4
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order == 1:
        bits.u(1), bits.se(), bits.se()
        for _ in range(min(bits.ue(), 255)):
            bits.se()
    bits.ue()  # reference frames
    gaps = bool(bits.u(1))
    width, height = 16 * (bits.ue() + 1), 16 * (bits.ue() + 1)
    fields = 1 if bits.u(1) else 2
    height *= fields
    if fields == 2:
        bits.u(1)
    bits.u(1)  # direct_8x8_inference
    if bits.u(1):
        left, right, top, bottom = (bits.ue() for _ in range(4))
        width -= (left + right) * (2 if chroma in (1, 2) else 1)
        height -= (top + bottom) * (2 if chroma == 1 else 1) * fields
    return SequenceInfo(identifier, max(width, 0), max(height, 0), 1, frame_num_bits, gaps, separate)


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _h265_sequence(bits: Bits) -> SequenceInfo:
    bits.u(4)  # video parameter set
    sub_layers = bits.u(3) + 1
    bits.u(1)
    bits.u(96)  # general profile, tier and level
    if sub_layers > 1:
        present = [(bits.u(1), bits.u(1)) for _ in range(8)][: sub_layers - 1]
        for profile, level in present:
            bits.u(88 * profile + 8 * level)
    identifier = bits.ue()
    chroma = bits.ue()
    if chroma == 3 and bits.u(1):
        chroma = 0
    width, height = bits.ue(), bits.ue()
    if bits.u(1):
        left, right, top, bottom = (bits.ue() for _ in range(4))
        width -= (left + right) * (2 if chroma in (1, 2) else 1)
        height -= (top + bottom) * (2 if chroma == 1 else 1)
    return SequenceInfo(identifier, max(width, 0), max(height, 0), sub_layers)
