"""The scene of these tests: a target, a bystander that uses it, diallers that come through proxies.

Whatever is done to the diallers, at the end of the block the bystander has not missed a ping, no descriptor
and no task is left, nothing was logged as an error, and handshakes failed with errors of flare's own only.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from flare.config import Config, HostLimits, MuxLimits, ReservationConfig, Timeouts
from flare.errors import DialFailed, FlareError
from flare.events import ConnectionLost, Event, PeerIdentified
from flare.host import Host
from flare.transport.connection import Connection
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import eventually, run
from tests.support.proxy import FaultProxy, Plan, Run

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PATIENCE = 1.5  # seconds: every timeout of the hosts here; a busy machine stalls for half of it
SLACK = 2.5  # seconds that a busy machine may add
QUICK = Config(
    timeouts=replace(
        Timeouts(),
        **dict.fromkeys(("dial", "handshake", "negotiate", "identify", "ping"), PATIENCE),
        **dict.fromkeys(("relay_message", "relay_connect", "dcutr_message"), PATIENCE),
        close=0.3,
        linger=PATIENCE,
    ),
    mux=replace(MuxLimits(), keepalive=0.5, keepalive_timeout=0.5),
    host=replace(HostLimits(), max_handshakes_per_ip=512),
    reservation=replace(ReservationConfig(), backoff_first=0.05, backoff_max=0.2, backoff_refused=0.2),
    security=("noise",),  # whose bytes the faults are aimed at; test_tls.py does the same to TLS
)


def once(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Like `aio`, on uvloop alone: for what differs in the peer's bytes and not in how they are awaited."""

    @functools.wraps(test)
    def on_uvloop(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs), loop="uvloop")

    return on_uvloop


def descriptors() -> set[str]:
    """The open file descriptors of this process, and what they are."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{fd}: {os.readlink(f'/proc/self/fd/{fd}')}")
    return found


class _Log(logging.Handler):
    """Keeps what was logged as an error, and the errors that ended inbound handshakes."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.errors: list[str] = []
        self.handshakes: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.errors.append(f"{record.getMessage()} {record.exc_info}")
        elif str(record.msg).startswith("handshake with") and isinstance(record.args, tuple):
            self.handshakes += [arg for arg in record.args if isinstance(arg, BaseException)]


@contextlib.contextmanager
def calm() -> Iterator[_Log]:
    """In here nothing is logged as an error, and handshakes fail with errors of flare only."""
    log = _Log()
    root, ours = logging.getLogger(), logging.getLogger("flare")
    level = ours.level
    root.addHandler(log)
    ours.setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        ours.setLevel(level)
        root.removeHandler(log)
    assert not log.errors, "logged as errors: " + "\n".join(log.errors)
    strange = {repr(error) for error in log.handshakes if not isinstance(error, FlareError)}
    assert not strange, f"handshakes ended by something else than a FlareError: {strange}"


class Bystander:
    """A host that did nothing wrong: it pings `target` all the time, over one connection."""

    def __init__(self, target: Host) -> None:
        self._target = target
        self.host = Host(listen=[], punch=False)
        self.pings = 0
        self.slowest = 0.0

    async def __aenter__(self) -> Bystander:
        await self.host.start()
        for last in (False, False, True):
            try:
                self.connection = await self.host.connect(self._target.full_addrs[0])
                break
            except DialFailed:  # the stage is set up within PATIENCE too, and a machine may stall for longer
                if last:
                    raise
        self._task = asyncio.ensure_future(self._ping())
        return self

    async def _ping(self) -> None:
        while True:
            self.slowest = max(self.slowest, await self.connection.ping(timeout=5))
            self.pings += 1
            await asyncio.sleep(0.01)

    async def __aexit__(self, *exc: object) -> None:
        if self._task.done():
            self._task.result()  # the error that a ping met
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        assert not self.connection.closed, f"the bystander was cut off: {self.connection.close_reason}"
        assert self.pings, "the bystander was never answered"
        await self.host.close()


@dataclass
class Outcome:
    """What a dialler saw. `error` is the dial's, or what ended the connection."""

    plan: Plan
    seconds: float = 0.0
    connected: bool = False
    identified: bool = False
    error: BaseException | None = None
    lost: str | None = None
    run: Run | None = None


@dataclass
class Lane:
    """A dialler and its proxy."""

    host: Host
    proxy: FaultProxy
    addr: Multiaddr
    events: list[Event] = field(default_factory=list)

    async def attempt(self, plan: Plan) -> Outcome:
        """Dial the target under `plan`; wait until it is identified or lost, or the time is over."""
        outcome = Outcome(plan)
        self.proxy.plan = plan
        self.events.clear()
        began = time.monotonic()
        try:
            connection = await self.host.connect(self.addr)
        except DialFailed as failed:
            ((_, outcome.error),) = failed.attempts
        except FlareError as error:
            outcome.error = error
        else:
            outcome.connected = True
            await self._watch(connection, outcome)
        outcome.seconds = time.monotonic() - began
        if self.proxy.runs:
            outcome.run = self.proxy.runs.pop()
        return outcome

    async def _watch(self, connection: Connection, outcome: Outcome) -> None:
        deadline = time.monotonic() + 2 * PATIENCE + 1
        while time.monotonic() < deadline and not connection.closed and not outcome.identified:
            outcome.identified = any(isinstance(event, PeerIdentified) for event in self.events)
            await asyncio.sleep(0.002)
        outcome.error = connection.close_reason
        losses = [event.reason for event in self.events if isinstance(event, ConnectionLost)]
        outcome.lost = losses[0] if losses else None
        await connection.close()


class Scene:
    """`target`, its bystander, and `lanes` to it."""

    def __init__(self, target: Host, bystander: Bystander, lanes: list[Lane]) -> None:
        self.target = target
        self.bystander = bystander
        self.lanes = lanes
        self.log: _Log

    async def attempts(self, plans: Iterable[Plan]) -> list[Outcome]:
        """Each plan once, on as many lanes as there are; in their order."""
        waiting = list(enumerate(plans))
        waiting.reverse()
        outcomes: dict[int, Outcome] = {}

        async def drive(lane: Lane) -> None:
            while waiting:
                index, plan = waiting.pop()
                outcomes[index] = await lane.attempt(plan)

        async with asyncio.TaskGroup() as group:
            for lane in self.lanes:
                group.create_task(drive(lane))
        return [outcomes[index] for index in sorted(outcomes)]


@contextlib.asynccontextmanager
async def scene(
    *, lanes: int = 8, config: Config = QUICK, prepare: Callable[[Host], None] = lambda host: None
) -> AsyncIterator[Scene]:
    """A scene, and the judgement at its end."""
    with calm() as log:
        before = descriptors()
        async with contextlib.AsyncExitStack() as stack:
            target = await stack.enter_async_context(Host(listen=[LOOPBACK], config=config, punch=False))
            prepare(target)
            bystander = await stack.enter_async_context(Bystander(target))
            built = []
            for _ in range(lanes):
                host = await stack.enter_async_context(Host(listen=[], config=config, punch=False))
                at = target.full_addrs[0]
                proxy = await stack.enter_async_context(FaultProxy((str(at.ip), at.port or 0)))
                addr = Multiaddr(f"/ip4/{proxy.host}/tcp/{proxy.port}/p2p/{target.peer_id}")
                lane = Lane(host, proxy, addr)
                host.on_event(lane.events.append)
                built.append(lane)
            the_scene = Scene(target, bystander, built)
            the_scene.log = log
            yield the_scene
            await at_rest(target, bystander.host)
        await asyncio.sleep(0)
        after = descriptors()
        assert after <= before, f"descriptors left open: {after - before}"


async def at_rest(target: Host, *friends: Host) -> None:
    """Wait until `target` has no connection but those of `friends`, and no handshake under way."""
    known = {friend.peer_id for friend in friends}
    await eventually(lambda: known.issuperset(target._connections), "strangers gone", timeout=5)
    await eventually(lambda: not target._tcp.admission.handshakes, "handshakes over", timeout=5)
    await eventually(lambda: not len(target._tasks), "tasks over", timeout=5)
