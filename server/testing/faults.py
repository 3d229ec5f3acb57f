"""What can go wrong with a camera's packets, as knobs that may be turned while it runs.

Pure, and seeded: the same knobs and the same packets give the same damage.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from server.testing.clip import RTP_HEADER_BYTES

_SPARED_BYTES = 3
"""NAL and fragment headers stay whole: the damage then reaches the decoder, as a bit error on the way would."""
_CORRUPT_BYTES = 4


@dataclass(slots=True)
class Faults:
    """Rates are chances for each packet, 0 to 1. All fields may be set at any time, from any thread."""

    loss: float = 0.0
    lose_next: int = 0
    """So many packets, from the next one on, are lost; counts down."""
    corrupt: float = 0.0
    corrupt_next: int = 0
    """So many packets, from the next one on, are corrupted; counts down."""
    duplicate: float = 0.0
    reorder: float = 0.0
    """A packet changes places with the next one of its frame. UDP only: TCP keeps the order."""
    stalled: bool = False
    """Connections stay open and requests are answered, but no packet is sent; time goes on."""
    keyframe_pause_s: float = 0.0
    """Every keyframe comes so much late, and the frames behind it at once: consumer cameras do that."""
    withhold_sets: int = 0
    """The first so many keyframes after a PLAY come without SPS, PPS and VPS (nor are these in SDP)."""

    def harms_packets(self) -> bool:
        return bool(self.loss or self.lose_next or self.corrupt or self.corrupt_next or self.duplicate)

    def damage(self, packets: Sequence[bytes], rng: random.Random) -> tuple[list[bytes], int]:
        """(what is sent of these RTP packets, how many of them were lost or corrupted)"""
        sent: list[bytes] = []
        harmed = 0
        for packet in packets:
            if self._lost(rng):
                harmed += 1
                continue
            if self._corrupted(rng):
                harmed += 1
                packet = corrupted(packet, rng)
            sent.append(packet)
            if self.duplicate and rng.random() < self.duplicate:
                sent.append(packet)
        return sent, harmed

    def shuffled(self, packets: Sequence[bytes], rng: random.Random) -> list[bytes]:
        """The same packets, some of them behind their successor."""
        order = list(packets)
        index = 0
        while index < len(order) - 1:
            if rng.random() < self.reorder:
                order[index], order[index + 1] = order[index + 1], order[index]
                index += 1
            index += 1
        return order

    def _lost(self, rng: random.Random) -> bool:
        if self.lose_next:
            self.lose_next -= 1
            return True
        return bool(self.loss) and rng.random() < self.loss

    def _corrupted(self, rng: random.Random) -> bool:
        if self.corrupt_next:
            self.corrupt_next -= 1
            return True
        return bool(self.corrupt) and rng.random() < self.corrupt


def corrupted(packet: bytes, rng: random.Random) -> bytes:
    """The packet with some bytes of its payload changed; headers stay whole, so that no receiver can tell."""
    first = RTP_HEADER_BYTES + _SPARED_BYTES
    if len(packet) <= first:
        first = len(packet) - 1
    data = bytearray(packet)
    for _ in range(_CORRUPT_BYTES):
        data[rng.randrange(first, len(data))] ^= rng.randrange(1, 256)
    return bytes(data)
