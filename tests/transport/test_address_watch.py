"""rtnetlink's messages, a watch on the real kernel, and how it does without (rtnetlink(7))."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.errors import DecodeError
from flare.transport import address_watch
from flare.transport.address_watch import ADDRESS, ROUTE, AddressWatch, decode, own_ips
from tests.support.aio import aio, eventually


def message(kind: int, body: bytes = b"") -> bytes:
    data = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    return data + b"\0" * (-len(data) % 4)


def route(prefix: int = 0, table: int = 254) -> bytes:
    return struct.pack("=BBBBBBBBI", socket.AF_INET, prefix, 0, 0, table, 3, 0, 1, 0)


class TestMessages:
    @pytest.mark.parametrize("kind", [20, 21])
    def test_addresses(self, kind: int) -> None:
        assert decode(message(kind, b"x" * 8)) == {ADDRESS}

    @pytest.mark.parametrize("kind", [24, 25])
    def test_default_routes(self, kind: int) -> None:
        assert decode(message(kind, route())) == {ROUTE}
        assert decode(message(kind, route(prefix=24))) == set(), "of a network"
        assert decode(message(kind, route(table=255))) == set(), "of the local table"

    def test_several_in_one(self) -> None:
        assert decode(message(20, b"x" * 5) + message(3) + message(24, route())) == {ADDRESS, ROUTE}
        assert decode(b"") == set()
        assert decode(message(16)) == set()

    @pytest.mark.parametrize(
        "data",
        [
            b"x",
            message(20)[:15],
            struct.pack("=IHHII", 15, 20, 0, 0, 0),
            struct.pack("=IHHII", 17, 20, 0, 0, 0),
            message(24, route()[:11]),
        ],
    )
    def test_what_is_none(self, data: bytes) -> None:
        with pytest.raises(DecodeError):
            decode(data)

    @given(st.binary(max_size=100))
    def test_any_bytes(self, data: bytes) -> None:
        with contextlib.suppress(DecodeError):
            assert decode(data) <= {ADDRESS, ROUTE}


class TestWatch:
    @aio
    async def test_messages_that_come_together_are_told_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(address_watch, "PAUSE", 0.01)
        told: list[frozenset[str]] = []
        watch = AddressWatch(told.append)
        watch.start()
        try:
            fake = Kernel(message(20, b"x" * 8), message(24, route()), b"junk")
            real, watch._sock = watch._sock, fake  # type: ignore[assignment]
            watch._readable()
            watch._readable()
            await eventually(lambda: told)
            assert told == [frozenset({ADDRESS, ROUTE})]
            watch._sock = real
        finally:
            watch.close()
            watch.close()

    @aio
    async def test_lost_messages_are_a_change(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(address_watch, "PAUSE", 0.01)
        told: list[frozenset[str]] = []
        watch = AddressWatch(told.append)
        watch._sock = Kernel(OSError(105, "ENOBUFS"))  # type: ignore[assignment]
        watch._readable()
        await eventually(lambda: told)
        assert told == [frozenset({ADDRESS, ROUTE})]

    @aio
    async def test_only_the_kernel_is_believed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[frozenset[str]] = []
        watch = AddressWatch(told.append)
        watch._sock = Kernel(message(20), sender=4711)  # type: ignore[assignment]
        watch._readable()
        assert watch._timer is None

    @aio
    async def test_without_netlink_it_looks_now_and_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(address_watch, "POLL", 0.01)
        found = [frozenset({"10.0.0.1"})]
        monkeypatch.setattr(address_watch, "own_ips", lambda: found[-1])
        told: list[frozenset[str]] = []
        watch = AddressWatch(told.append, netlink=False)
        watch.start()
        assert watch.polls
        found.append(frozenset({"10.0.0.2"}))
        await eventually(lambda: told)
        assert told == [frozenset({ADDRESS})]
        watch.close()

    @aio
    async def test_where_netlink_is_not_allowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any) -> Any:
            raise PermissionError(1, "not permitted")

        watch = AddressWatch(lambda about: None)
        with monkeypatch.context() as patch:
            patch.setattr(address_watch.socket, "socket", refuse)
            watch.start()
        assert watch.polls
        watch.close()

    def test_our_own_addresses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "127.0.0.1" not in own_ips()

        def fail(version: int) -> Any:
            raise OSError("no getifaddrs")

        monkeypatch.setattr(address_watch, "interface_addresses", fail)
        assert own_ips() == frozenset()


class Kernel:
    """A netlink socket that says these things."""

    def __init__(self, *said: bytes | OSError, sender: int = 0) -> None:
        self._said = list(said)
        self._sender = sender

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if not self._said:
            raise BlockingIOError
        item = self._said.pop(0)
        if isinstance(item, OSError):
            raise item
        return item, (self._sender, 0)
