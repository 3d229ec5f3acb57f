"""How often one address may show a wrong token.

Pure: `now` is passed in (monotonic seconds). A bucket for each address, refilled with time; the least recently used one
is forgotten, so that an attacker with many addresses fills no memory.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

BURST = 10
"""Wrong tokens in a row: a person, or a script that was not told of the new token, needs no more."""
REFILL_S = 6.0
"""Then one more in so many seconds."""
MAX_ADDRESSES = 1024


class Throttle:
    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (left, at)

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, address: str, now: float) -> float:
        """0 if another attempt may be made, else the seconds until one may."""
        left = self._left(_network(address), now)
        return 0.0 if left >= 1 else (1 - left) * REFILL_S

    def failed(self, address: str, now: float) -> bool:
        """Count a wrong token. True if it was the last one for now: worth one line in the log."""
        network = _network(address)
        left = max(self._left(network, now) - 1, 0.0)
        self._buckets[network] = (left, now)
        self._buckets.move_to_end(network)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return left < 1

    def _left(self, network: str, now: float) -> float:
        left, at = self._buckets.get(network, (float(BURST), now))
        return min(left + (now - at) / REFILL_S, float(BURST))


def _network(address: str) -> str:
    """An IPv6 client owns a /64 at least, and all of its addresses."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)
