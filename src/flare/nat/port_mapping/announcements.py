"""Hearing a router say that it has started anew (RFC 6886, 3.2.1; RFC 6887, 14.1.3).

It is a hint and no more, since anybody in the local network can say so: whoever hears it asks the router.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from flare.wire.address_space import IpAddress

logger = logging.getLogger("flare.nat.port_mapping")

GROUP: Final = "224.0.0.1"  # all hosts, which every interface has joined already
PORT: Final = 5350
MAX_A_TURN: Final = 64  # datagrams read before the loop runs something else


class Announcements:
    """Calls `on_news` with the address of whoever announced something, from `open` to `close`."""

    def __init__(self, on_news: Callable[[IpAddress], None], *, group: str = GROUP) -> None:
        self._on_news = on_news
        self._group = group
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Listen. Where that is not to be had, mappings are looked at when it is time, and no sooner."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # others here listen for it too
            sock.bind((self._group, PORT))
        except OSError as error:
            sock.close()
            logger.info("not listening for a router's announcements: %s", error)
            return
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)

    def close(self) -> None:
        """Listen no more. Idempotent."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        assert self._socket is not None
        senders = set()
        for _ in range(MAX_A_TURN):
            try:
                _, address = self._socket.recvfrom(64)
            except OSError:
                break
            senders.add(str(address[0]))
        for sender in senders:
            self._on_news(ip_address(sender))
