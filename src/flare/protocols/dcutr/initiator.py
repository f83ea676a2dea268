"""Peer B, which accepted the relayed connection and starts the upgrade (DCUtR.md, "The Protocol").

    B -> A  CONNECT with our addresses      the round trip is measured from here
    A -> B  CONNECT with theirs             ... to here, anew for each attempt
    B -> A  SYNC                            half of it later both connect at once

After a failure it begins again, on a new stream, with a new measurement.

Two flares tell each other a little more in their CONNECTs (PunchHint); others skip it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flare.errors import FlareError, ProtocolViolation, PunchFailed, StreamReset, TimedOut
from flare.protocols.dcutr import CLIENT, PROTOCOL, SERVER
from flare.protocols.dcutr.addresses import Targets, connect_message
from flare.protocols.exchange import MESSAGE_LIMIT, PUNCH, TIMEOUTS, within
from flare.wire.messages import HolePunch, HolePunchType, PunchHint

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.stream import Stream
    from flare.wire.multiaddr import Multiaddr

Choose = Callable[[Sequence["Multiaddr"]], Targets]
Punch = Callable[..., Awaitable["Connection"]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that failed, and how. `rtt_ns` is 0 when it broke off before the round trip was known."""

    number: int
    rtt_ns: int
    role: str
    error: str


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The direct connection, the attempt that made it (from 1), and those that failed before."""

    connection: Connection
    attempt: int
    failed: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Agreed:
    """Where to connect to and when, after one CONNECT/CONNECT/SYNC. `hint` is what another flare tells."""

    targets: Targets
    deadline_ns: int
    rtt_ns: int
    hint: PunchHint | None = None


class Plan:
    """What changes from one attempt to the next; this one changes nothing and knows nothing."""

    async def prepare(self, attempt: int) -> PunchHint | None:
        """Attempt `attempt`, from 1, is about to begin; what to tell a flare."""
        return None

    def agreed(self, hint: PunchHint | None) -> None:
        """What the peer told of itself."""

    def worth(self, attempt: int) -> bool:
        """Whether attempt `attempt` would try anything new."""
        return True


async def upgrade(
    relayed: Connection,
    *,
    addrs: Callable[[], Sequence[Multiaddr]],
    choose: Choose,
    punch: Punch,
    attempts: int = PUNCH.attempts,
    last_role: str = CLIENT,
    timeout: float = TIMEOUTS.dcutr_message,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    plan: Plan | None = None,
) -> Upgraded:
    """Up to `attempts` times agree with the peer and `punch`; PunchFailed tells what each attempt saw.

    `punch(addrs, deadline_ns, role=, rtt_ns=)` returns the secured connection. We are the server, and on the
    last of several attempts `last_role`: the client, for peers that have the roles of the specification
    reversed.
    """
    plan = plan or Plan()
    failed: list[Attempt] = []
    for number in range(1, attempts + 1):
        role = last_role if number == attempts > 1 else SERVER
        rtt_ns = 0
        hint = await plan.prepare(number)
        ours = addrs()
        if not connect_message(ours).obs_addrs:
            raise PunchFailed(
                "we know of no address of ours to offer: nobody has told us yet how they see us"
            )
        try:
            async with relayed.open_stream(PROTOCOL, allow_limited=True) as stream:
                agreed = await agree(stream, ours, choose, hint=hint, timeout=timeout, clock_ns=clock_ns)
            rtt_ns = agreed.rtt_ns
            plan.agreed(agreed.hint)
            if not agreed.targets.addrs:
                raise PunchFailed(agreed.targets.sentence)
            connection = await punch(agreed.targets.addrs, agreed.deadline_ns, role=role, rtt_ns=rtt_ns)
            return Upgraded(connection, number, tuple(failed))
        except FlareError as error:
            failed.append(Attempt(number, rtt_ns, role, str(error)))
            if not _worth_another(error) or not plan.worth(number + 1):
                break
    raise PunchFailed(explain(failed), attempts=len(failed))


async def agree(
    stream: Stream,
    addrs: Sequence[Multiaddr],
    choose: Choose,
    *,
    hint: PunchHint | None = None,
    timeout: float = TIMEOUTS.dcutr_message,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> Agreed:
    """One exchange on `stream`. ProtocolViolation, TimedOut, NetworkError."""
    async with within(timeout, "the peer's CONNECT"):
        await stream.write_frame(connect_message(addrs, hint).encode())
        sent = clock_ns()  # after the write, so that what queued here before it does not count
        payload = await stream.read_frame(MESSAGE_LIMIT)
        rtt_ns = clock_ns() - sent
        theirs = HolePunch.decode(payload)
    if theirs.type is not HolePunchType.CONNECT:
        raise ProtocolViolation("answered CONNECT with something else", protocol=PROTOCOL)
    async with within(timeout, "sending SYNC"):
        await stream.write_frame(HolePunch(type=HolePunchType.SYNC).encode())
    return Agreed(choose(theirs.obs_addrs), clock_ns() + rtt_ns // 2, rtt_ns, theirs.hint)


def explain(failed: Sequence[Attempt]) -> str:
    """What the attempts saw, in one sentence."""
    if not failed:
        return "no attempt was made"
    if len({attempt.error for attempt in failed}) == 1:
        times = f" ({len(failed)} times)" if len(failed) > 1 else ""
        return f"{failed[0].error}{times}"
    return "; ".join(f"attempt {attempt.number}: {attempt.error}" for attempt in failed)


def _worth_another(error: FlareError) -> bool:
    """After a failed punch, a broken or slow stream; not with a peer that breaks the protocol."""
    return isinstance(error, PunchFailed | TimedOut | StreamReset)
