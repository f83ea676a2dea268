"""Sockets that have said nothing: they wait, speak, are dropped, or are late."""

from __future__ import annotations

import asyncio
import socket

from flare.transport.doorstep import Doorstep
from tests.support.aio import aio, eventually


def ends() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection."""
    near, far = socket.socketpair()
    near.setblocking(False)
    return near, far


class Seen:
    """What became of the sockets."""

    def __init__(self) -> None:
        self.spoke: list[float] = []
        self.late = 0

    def on_late(self) -> None:
        self.late += 1


@aio
async def test_who_has_spoken_already_does_not_wait() -> None:
    near, far = ends()
    with near, far:
        far.send(b"x")
        door, seen = Doorstep(10), Seen()
        door.add(near, seen.spoke.append, seen.on_late)
        assert len(seen.spoke) == 1
        assert len(door) == 0
        assert near.recv(10) == b"x", "nothing was taken out of it"


@aio
async def test_who_speaks_later_arrived_when_it_arrived() -> None:
    near, far = ends()
    with near, far:
        door, seen = Doorstep(10), Seen()
        arrived = asyncio.get_running_loop().time()
        door.add(near, seen.spoke.append, seen.on_late)
        await asyncio.sleep(0.05)
        assert seen.spoke == []
        far.send(b"x")
        await eventually(lambda: seen.spoke)
        assert seen.spoke[0] < arrived + 0.04
        assert await asyncio.get_running_loop().sock_recv(near, 10) == b"x", "its reader is the caller's now"
        door.close()


@aio
async def test_who_leaves_has_something_to_read() -> None:
    near, far = ends()
    with near:
        door, seen = Doorstep(10), Seen()
        door.add(near, seen.spoke.append, seen.on_late)
        far.close()
        await eventually(lambda: seen.spoke)
        door.close()


@aio
async def test_who_says_nothing_is_late() -> None:
    door, seen = Doorstep(0.1), Seen()
    pairs = [ends() for _ in range(3)]
    for near, _ in pairs[:2]:
        door.add(near, seen.spoke.append, seen.on_late)
    await asyncio.sleep(0.06)
    door.add(pairs[2][0], seen.spoke.append, seen.on_late)
    await eventually(lambda: seen.late == 2)
    assert len(door) == 1, "each has its own time"
    await eventually(lambda: seen.late == 3)
    assert seen.spoke == []
    for near, far in pairs:
        assert near.fileno() == -1
        far.close()


@aio
async def test_dropping_and_closing() -> None:
    door, seen = Doorstep(10), Seen()
    pairs = [ends() for _ in range(3)]
    for near, _ in pairs:
        door.add(near, seen.spoke.append, seen.on_late)
    assert door.drop(pairs[0][0])
    assert not door.drop(pairs[0][0])
    assert pairs[0][0].fileno() == -1
    door.close()
    assert len(door) == 0
    for near, far in pairs:
        assert near.fileno() == -1
        far.close()
    assert seen.late == 0
