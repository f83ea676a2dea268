"""What we can tell of the ports that our NAT will give us, and what that makes of a hole punch.

When others see our port as one that is none of ours, a relay of ours is asked as what it sees some fresh ones
(under an identity of its own: it is to take us for nobody). Ports in sequence are foretold from then on, from
one more look right before each attempt. The rest is left to `flare.nat.prediction.parts`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from flare.config import PunchConfig
from flare.errors import FlareError
from flare.events import Event, NatBehaviourChanged
from flare.nat import observed
from flare.nat.behaviour import Mapping as Behaviour
from flare.nat.behaviour import Sight
from flare.nat.birthday import Search
from flare.nat.prediction import (
    Part,
    Tellable,
    attempts_worth,
    counting,
    forecast,
    meeting,
    parts,
    step_of,
)
from flare.protocols.dcutr import initiator
from flare.wire.messages import PunchHint
from flare.wire.multiaddr import Multiaddr

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.wire.peer_id import PeerId

log = logging.getLogger("flare.nat.foresight")

SAMPLES: Final = 3  # fresh ports that show whether a NAT counts
PATIENCE: Final = 1.0  # seconds that a punch waits for a look
FAR: Final = 4096  # ports between two looks at most: else it is another NAT, or the sequence began again
FRESH: Final = 0.5  # seconds for which one look does for every punch: defends relays
AGAIN: Final = 60.0  # seconds after which a NAT that was found not to count is looked at again
TRANSPORTS: Final = ("quic-v1", "tcp")

_JUDGED: Final[dict[Behaviour, Tellable]] = {
    kind: Tellable.NO if kind.depends else Tellable.YES for kind in Behaviour if kind is not Behaviour.UNKNOWN
}

Look = Callable[["PeerId", Mapping[str, Multiaddr], int], Awaitable[Mapping[str, Sequence[Sight]]]]
"""`look(relay, addrs, samples)`: so many fresh ports of each transport, as the relay at `addrs` sees them."""


class Foresight:
    """`mapping` is what is known of our NAT, `look` asks a relay, `relay` says who is one of ours, `addrs_of`
    are the addresses that a peer told. A relay may tell ports of ours only: `believed(relay, ip)` must hold.
    """

    def __init__(
        self,
        *,
        mapping: Callable[[], observed.Mapping],
        listen_addrs: Callable[[], Sequence[Multiaddr]],
        look: Look,
        addrs_of: Callable[[PeerId], Sequence[Multiaddr]] = lambda peer: (),
        relay: Callable[[PeerId], bool] = lambda peer: True,
        believed: Callable[[PeerId, str], bool] = lambda peer, ip: True,
        limits: PunchConfig | None = None,
    ) -> None:
        self._mapping = mapping
        self._listen_addrs = listen_addrs
        self._look = look
        self._addrs_of = addrs_of
        self._is_relay = relay
        self._believed = believed
        self._limits = limits or PunchConfig()
        self._relay: tuple[PeerId, dict[str, Multiaddr]] | None = None
        self._steps: dict[str, int] = {}
        self._last: dict[str, Sight] = {}
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")
        self._looked_from: tuple[Multiaddr, ...] = ()
        self._judged: Tellable | None = None

    # -- what is known

    @property
    def tellable(self) -> Tellable:
        """Whether others can be told where to aim at us over UDP."""
        if self._judged is not None:
            return self._judged
        kind = self._mapping().kind
        if kind == "endpoint-dependent":
            return Tellable.NO
        return Tellable.DOUBTFUL if kind == "doubtful" else Tellable.YES

    @property
    def difficult(self) -> bool:
        """Whether something speaks against what others see as our addresses, of any transport."""
        doubted = self._mapping().kind in ("endpoint-dependent", "doubtful")
        return doubted or self.tellable is not Tellable.YES

    def _listening(self, transport: str) -> bool:
        """On IPv4: who has IPv6 hardly has such a NAT."""
        return any(addr.transport == transport and addr.has("ip4") for addr in self._listen_addrs())

    def hear(self, event: Event) -> None:
        """Somebody looked at our NAT thoroughly (flare.AutoNat): that is better than what we guess."""
        if isinstance(event, NatBehaviourChanged) and event.transport == "udp":
            self._judged = _JUDGED.get(Behaviour(event.mapping))

    @property
    def addrs(self) -> tuple[Multiaddr, ...]:
        """The addresses that our NAT will give us next, where it gives them in sequence."""
        return tuple(
            Multiaddr.from_socket((self._last[transport].seen[0], port), transport)
            for transport, ports in self._forecast().items()
            for port in ports
        )

    def _forecast(self) -> dict[str, tuple[int, ...]]:
        if not self._steps or not self.difficult:
            return {}
        return forecast(self._steps, {transport: sight.seen[1] for transport, sight in self._last.items()})

    def hint(self, attempt: int) -> PunchHint:
        """What we tell a flare."""
        able = self._listening("quic-v1") and self._limits.probe_rate > 0
        upcoming = self._forecast()
        ports = upcoming.get("quic-v1", ())
        return PunchHint(
            mapping=int(self.tellable),
            attempt=attempt,
            sockets=self._limits.sockets if able else 0,
            probes=self._limits.probes if able else 0,
            predicted=sum(map(len, upcoming.values())),
            port=ports[0] if ports else 0,
            step=self._steps["quic-v1"] if ports else 0,
        )

    # -- looking

    def met(self, connection: Connection) -> None:
        """There is a direct connection: if it is a relay's, our ports can be seen from there."""
        peer = connection.remote_peer
        if not self._is_relay(peer) or not self.difficult:
            return
        ip = connection.remote_addr.ip
        if ip is None or ip.version != 4:
            return
        dialled = [connection.remote_addr] if connection.initiator else []
        addrs: dict[str, Multiaddr] = {}
        for addr in (*dialled, *self._addrs_of(peer)):
            endpoint = addr.endpoint
            if endpoint is None or addr.is_circuit or addr.ip != ip:
                continue
            if endpoint[1] in TRANSPORTS and self._listening(endpoint[1]):
                addrs.setdefault(endpoint[1], Multiaddr.from_socket((endpoint[0], endpoint[2]), endpoint[1]))
        if addrs:
            self._relay = peer, addrs
            self._start()

    def _start(self) -> None:
        """Look at the NAT, unless that is under way or was done; see where one that counts is now."""
        loop = asyncio.get_running_loop()
        if self._relay is None or (self._looking is not None and not self._looking.done()):
            return
        here = tuple(self._listen_addrs())
        if here != self._looked_from:  # another network, perhaps another NAT
            self._steps.clear()
            self._looked_at, self._looked_from = float("-inf"), here
        if loop.time() - self._looked_at < (FRESH if self._steps else AGAIN):
            return
        samples = 1 if self._steps else SAMPLES
        self._looked_at = loop.time()
        self._looking = loop.create_task(self._see(*self._relay, samples), name="looking at our NAT's ports")

    async def ready(self) -> None:
        """Before an attempt: wait a little for the last word on our ports."""
        if not self.difficult:
            return
        self._start()
        if self._looking is not None:
            await asyncio.wait((self._looking,), timeout=PATIENCE)

    def refresh(self) -> None:
        """An attempt may come, or one used ports up."""
        if self.difficult:
            self._start()

    async def _see(self, relay: PeerId, addrs: Mapping[str, Multiaddr], samples: int) -> None:
        # one transport after the other at first, so that a relay sees few connections of one IP at once
        groups = [{name: addr} for name, addr in addrs.items()] if samples > 1 else [addrs]
        for group in groups:
            try:
                seen = await self._look(relay, group, samples)
            except (FlareError, OSError) as error:
                log.info("%s could not say as what it sees us: %s", relay, error, extra={"peer": str(relay)})
                continue
            for transport, told in seen.items():
                sights = [sight for sight in told if self._believed(relay, sight.seen[0])]
                if not sights:
                    continue
                newest = max(sights, key=lambda sight: sight.seen[1])
                before = self._last.get(transport)
                if samples > 1:
                    self._steps[transport] = step_of(sights)
                elif before is None or not 0 < newest.seen[1] - before.seen[1] <= FAR:
                    self._steps[transport] = 0
                self._last[transport] = newest
        if not any(self._steps.values()):
            self._steps.clear()
            if samples == 1:
                self._looked_at = float("-inf")

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))


class Plan(initiator.Plan):
    """What two flares told each other for one attempt, and what follows from it. `tells`: the peer is one."""

    def __init__(
        self, foresight: Foresight | None = None, *, initiating: bool = True, tells: bool = False
    ) -> None:
        self._foresight = foresight
        self._initiating = initiating
        self._tells = tells
        self._hints: tuple[PunchHint, PunchHint] | None = None  # the initiator's, the responder's
        self._ours: PunchHint | None = None

    async def prepare(self, attempt: int) -> PunchHint | None:
        """See initiator.Plan."""
        self._hints = self._ours = None
        if self._foresight is None:
            return None
        await self._foresight.ready()
        if self._tells:
            self._ours = self._foresight.hint(attempt)
        return self._ours

    def agreed(self, hint: PunchHint | None) -> None:
        """See initiator.Plan."""
        if self._ours is not None and hint is not None:
            self._hints = self._ours, hint

    def answer(self, theirs: PunchHint) -> PunchHint | None:
        """What the responder tells a flare that began."""
        if self._foresight is None:
            return None
        ours = self._foresight.hint(theirs.attempt)
        self._hints = theirs, ours
        return ours

    def worth(self, attempt: int) -> bool:
        """Whether attempt `attempt` would try anything new."""
        return self._hints is None or attempt <= attempts_worth(*self._hints, most=attempt)

    @property
    def hopeless(self) -> str:
        """Why nobody could aim at the other, in a sentence; "" when somebody could, or nobody knows."""
        if self._hints is None or any(hint.mapping == Tellable.YES for hint in self._hints):
            return ""
        if any(hint.predicted for hint in self._hints):
            return (
                "both NATs give each destination another port, and what could be foretold of them did not "
                "meet: the relay carries this connection"
            )
        return (
            "both NATs give out ports of their own, so that neither peer can be told where to aim, and a "
            "search would take some 54,000 probes from each side: the relay carries this connection"
        )

    def search(
        self,
        targets: Sequence[Multiaddr],
        *,
        is_public: Callable[[Multiaddr], bool],
        own_ips: frozenset[str],
    ) -> Search | None:
        """Our part in a search for a port, with the peer at the first of `targets` that can be searched.

        Only a public IPv4 address that is not ours too: then the peer is behind the same NAT.
        """
        if self._hints is None:
            return None
        part = parts(*self._hints)[not self._initiating]
        if part is Part.NOTHING:
            return None
        sequence: tuple[int, ...] = ()
        met = 0
        if counting(*self._hints):
            opening = self._initiating is (part is Part.OPENS)  # whether it is the initiator that opens
            met, sequence = meeting(*(self._hints if opening else self._hints[::-1]))
            if not met:
                return None
        for addr in targets:
            ip, transport, port = addr.endpoint or ("", "", 0)
            if transport == "quic-v1" and ":" not in ip and is_public(addr) and ip not in own_ips:
                return Search(part, (ip, met if met and part is Part.OPENS else port), sequence)
        return None
