"""Limits on transfers of bodies in and out: their number, their number per client, and their lowest rate."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.serving.errors import BusyError

GRACE_S = 5.0  # a sender or reader may stall this long, once, before its rate counts
_RETRY_S = 5  # retry time after a refusal, in which even the slowest allowed body makes room


class Transfers:
    """Count bodies in transfer. Uploads are limited in total; uploads and answers together, per client."""

    def __init__(self, most: int, most_per_client: int) -> None:
        self._most, self._most_per_client = most, most_per_client
        self.uploads = 0
        self.by_client: Counter[str] = Counter()

    @contextmanager
    def upload(self, client: str) -> Iterator[None]:
        """Count an arriving body. Raises BusyError if there are too many."""
        if self.by_client[client] >= self._most_per_client:
            raise BusyError(f"{self._most_per_client} transfers of your address are under way, the limit", _RETRY_S)
        if self.uploads >= self._most:
            raise BusyError(f"{self._most} uploads are under way, the limit of this server", _RETRY_S)
        self.uploads += 1
        try:
            with self.answer(client):
                yield
        finally:
            self.uploads -= 1

    @contextmanager
    def answer(self, client: str) -> Iterator[None]:
        """Count an answer that is being read. Answers are never refused, since their work is done."""
        self.by_client[client] += 1
        try:
            yield
        finally:
            self.by_client[client] -= 1
            if not self.by_client[client]:
                del self.by_client[client]


class Pace:
    """Compute deadlines for a transfer that must keep an average rate after a grace period."""

    def __init__(self, rate: float, total: float | None = None) -> None:
        """Start the clock.

        Args:
            rate: bytes per second.
            total: limit in seconds for the whole transfer; None for no limit.
        """
        self._rate, self._started = rate, asyncio.get_running_loop().time()
        self._end = None if total is None else self._started + total
        self._moved = 0

    def move(self, count: int) -> None:
        """Count transferred bytes."""
        self._moved += count

    @property
    def deadline(self) -> float:
        """Return the time of the event loop at which the transfer becomes too slow unless more bytes move."""
        slow = self._started + GRACE_S + self._moved / self._rate
        return slow if self._end is None else min(slow, self._end)


def client_key(client: tuple[str, int] | list | None) -> str:
    """Return the key of a client: an IPv4 address, or the /64 network of an IPv6 subscriber."""
    host = str(client[0]) if client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
