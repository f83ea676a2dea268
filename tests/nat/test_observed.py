"""Observed addresses: whom to believe, and what they say about the NAT (identify/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.nat.observed import GROUPS, OBSERVERS, PER_LISTENER, ObservedAddresses
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.linked import ALICE, RELAY, End, linked

LISTENER = Multiaddr("/ip4/192.168.1.2/tcp/4001")
OUTSIDE = Multiaddr("/ip4/5.5.5.5/tcp/4001")
STRANGERS = [Identity.generate() for _ in range(OBSERVERS + 1)]


class Bench:
    def __init__(self) -> None:
        self.changes = 0
        self.book = ObservedAddresses(
            listeners=lambda: [LISTENER, Multiaddr("/ip6/2001:41d0::1/tcp/4001")],
            trusted=lambda peer: peer == RELAY.peer_id,
            on_change=self._changed,
        )

    def _changed(self) -> None:
        self.changes += 1

    def seen(
        self, seen: Multiaddr | str, by: Identity, at: str = "/ip4/9.9.9.9/tcp/4001", **values: Any
    ) -> tuple[bool, End]:
        connection, _ = linked(ALICE, by)
        connection.local_addr, connection.remote_addr = LISTENER, Multiaddr(at)
        for name, value in values.items():
            setattr(connection, name, value)
        return self.book.record(connection, Multiaddr(seen)), connection  # type: ignore[arg-type]


class TestBelief:
    def test_a_configured_relay_is_believed_at_once_and_until_it_goes(self) -> None:
        bench = Bench()
        recorded, connection = bench.seen(OUTSIDE, RELAY)
        assert recorded
        assert bench.book.addrs() == (OUTSIDE,)
        bench.book.forget(connection)  # type: ignore[arg-type]
        assert bench.book.addrs() == ()
        assert bench.changes == 2

    def test_strangers_are_believed_when_enough_in_enough_networks_agree(self) -> None:
        bench = Bench()
        for n in range(OBSERVERS - 1):
            bench.seen(OUTSIDE, STRANGERS[n], f"/ip4/{n + 20}.1.1.1/tcp/1")
            assert bench.book.addrs() == ()
        bench.seen(OUTSIDE, STRANGERS[-1], "/ip4/80.1.1.1/tcp/1")
        assert bench.book.addrs() == (OUTSIDE,)

    def test_one_network_is_not_enough_however_many_observe(self) -> None:
        bench = Bench()
        for n in range(OBSERVERS + 1):
            bench.seen(OUTSIDE, STRANGERS[n], f"/ip4/20.1.1.{n + 1}/tcp/1")
        assert bench.book.addrs() == ()
        assert GROUPS == 2

    def test_one_ip_is_one_observer_however_many_peers_it_has(self) -> None:
        bench = Bench()
        for n in range(OBSERVERS):
            bench.seen(OUTSIDE, STRANGERS[n], f"/ip4/{20 + n % 2}.1.1.1/tcp/{n + 1}")
        assert bench.book.addrs() == ()

    def test_an_ipv6_site_is_one_observer(self) -> None:
        bench = Bench()
        outside = "/ip6/2001:41d0::99/tcp/4001"
        local = Multiaddr("/ip6/2001:41d0::1/tcp/4001")
        for n in range(OBSERVERS):
            bench.seen(outside, STRANGERS[n], f"/ip6/2a00:{n % 2}::{n + 1}/tcp/1", local_addr=local)
        assert bench.book.addrs() == ()
        for n in range(OBSERVERS):
            bench.seen(outside, STRANGERS[n], f"/ip6/2a00:{n}::1/tcp/1", local_addr=local)
        assert bench.book.addrs() == (Multiaddr(outside),)

    def test_a_peer_that_changes_its_mind_counts_once(self) -> None:
        bench = Bench()
        _, connection = bench.seen(OUTSIDE, RELAY)
        other = Multiaddr("/ip4/6.6.6.6/tcp/4001")
        bench.book.record(connection, other)  # type: ignore[arg-type]
        assert bench.book.addrs() == (other,)

    def test_the_three_best_attested_are_kept(self) -> None:
        bench = Bench()
        for n in range(PER_LISTENER + 1):
            bench.seen(f"/ip4/5.5.5.5/tcp/{5000 + n}", RELAY)
        assert len(bench.book.addrs()) == PER_LISTENER


class TestWhatIsNoObservation:
    @pytest.mark.parametrize(
        ("seen", "values"),
        [
            (OUTSIDE, {"relay": RELAY.peer_id}),
            (f"/ip4/5.5.5.5/tcp/1/p2p/{RELAY.peer_id}/p2p-circuit", {}),
            (OUTSIDE, {"local_addr": Multiaddr("/ip4/192.168.1.2/tcp/50123")}),
            ("/ip4/127.0.0.1/tcp/4001", {}),
            ("/ip4/0.0.0.0/tcp/4001", {}),
            ("/ip6/2001:41d0::1/tcp/4001", {}),
            ("/ip4/5.5.5.5/udp/4001/quic-v1", {}),
            (OUTSIDE, {"local_addr": None}),
        ],
        ids=[
            "relayed",
            "a circuit",
            "ephemeral port",
            "loopback",
            "unspecified",
            "other family",
            "quic",
            "unknown",
        ],
    )
    def test_it_is_left_out(self, seen: Multiaddr | str, values: dict[str, Any]) -> None:
        bench = Bench()
        assert bench.seen(seen, RELAY, **values)[0] is False
        assert bench.book.addrs() == ()
        assert bench.changes == 0

    def test_nothing_observed(self) -> None:
        connection, _ = linked()
        assert Bench().book.record(connection, None) is False  # type: ignore[arg-type]


class TestMapping:
    def test_nothing_is_known_at_first_and_one_observer_tells_too_little(self) -> None:
        bench = Bench()
        assert bench.book.mapping().kind == "unknown"
        bench.seen(OUTSIDE, RELAY)
        mapping = bench.book.mapping()
        assert mapping.kind == "unknown"
        assert "5.5.5.5:4001" in mapping.sentence

    def test_one_observer_of_another_port_is_a_doubt(self) -> None:
        bench = Bench()
        bench.seen("/ip4/5.5.5.5/tcp/31337", RELAY, initiator=True)
        mapping = bench.book.mapping()
        assert mapping.kind == "doubtful"
        assert "5.5.5.5:31337" in mapping.sentence
        assert "endpoint-dependent mapping" in mapping.sentence

    def test_two_that_agree_make_it_endpoint_independent(self) -> None:
        bench = Bench()
        bench.seen(OUTSIDE, RELAY)
        bench.seen(OUTSIDE, STRANGERS[0], "/ip4/80.1.1.1/tcp/1")
        assert bench.book.mapping().kind == "endpoint-independent"

    @pytest.mark.parametrize("second", ["/ip4/80.1.1.1/tcp/4001", "/ip4/9.9.9.9/tcp/4002"])
    def test_two_that_differ_make_it_endpoint_dependent_and_are_named(self, second: str) -> None:
        bench = Bench()
        bench.seen(OUTSIDE, RELAY)
        bench.seen("/ip4/5.5.5.5/tcp/31337", STRANGERS[0], second)
        mapping = bench.book.mapping()
        assert mapping.kind == "endpoint-dependent"
        assert "endpoint-dependent mapping" in mapping.sentence
        assert "5.5.5.5:4001" in mapping.sentence
        assert "5.5.5.5:31337" in mapping.sentence

    def test_connections_that_came_in_say_nothing_about_it(self) -> None:
        bench = Bench()
        bench.seen(OUTSIDE, RELAY)
        bench.seen("/ip4/5.5.5.5/tcp/31337", STRANGERS[0], "/ip4/80.1.1.1/tcp/1", initiator=False)
        assert bench.book.mapping().kind == "unknown"

    def test_no_nat(self) -> None:
        bench = Bench()
        bench.seen(LISTENER, RELAY)
        assert bench.book.mapping().kind == "none"


class TestGuesses:
    """A transport that nobody has seen is most likely where another one was, under its own port."""

    QUIC = Multiaddr("/ip4/192.168.1.2/udp/4005/quic-v1")

    def test_the_ip_of_the_one_with_the_port_of_the_other(self) -> None:
        bench = Bench()
        bench.book = ObservedAddresses(
            listeners=lambda: [LISTENER, self.QUIC], trusted=lambda peer: peer == RELAY.peer_id
        )
        assert bench.book.guesses() == ()
        bench.seen("/ip4/5.5.5.5/tcp/777", RELAY)
        assert bench.book.guesses() == (Multiaddr("/ip4/5.5.5.5/udp/4005/quic-v1"),)
        bench.seen("/ip4/5.5.5.5/udp/888/quic-v1", RELAY, "/ip4/9.9.9.9/udp/1/quic-v1", local_addr=self.QUIC)
        assert bench.book.guesses() == (), "it was seen itself"

    def test_the_worst_mapping_of_both(self) -> None:
        bench = Bench()
        bench.book = ObservedAddresses(
            listeners=lambda: [LISTENER, self.QUIC], trusted=lambda peer: peer == RELAY.peer_id
        )
        assert bench.book.worst_mapping().kind == "unknown"
        bench.seen("/ip4/5.5.5.5/tcp/4001", RELAY)
        bench.seen("/ip4/5.5.5.5/tcp/4001", STRANGERS[0], "/ip4/8.8.8.8/tcp/1")
        assert bench.book.worst_mapping().kind == "endpoint-independent"
        for port, at in ((1, "9.9.9.9"), (2, "8.8.8.8")):
            bench.seen(
                f"/ip4/5.5.5.5/udp/{port}/quic-v1",
                RELAY,
                f"/ip4/{at}/udp/1/quic-v1",
                local_addr=self.QUIC,
            )
        assert bench.book.worst_mapping().kind == "endpoint-dependent"


def naively_believed(observed: list[tuple[int, int, bool]]) -> set[Multiaddr]:
    """Every address that a look at all observations finds believable: (seen, vantage, trusted)."""
    believed = set()
    for seen in {seen for seen, _, _ in observed}:
        vantages = {vantage for s, vantage, _ in observed if s == seen}
        trusted = any(t for s, _, t in observed if s == seen)
        if trusted or (len(vantages) >= OBSERVERS and len({v // 4 for v in vantages}) >= GROUPS):
            believed.add(Multiaddr(f"/ip4/5.5.5.{seen}/tcp/4001"))
    return believed


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.booleans(), st.integers(1, 3), st.integers(0, 7), st.booleans()),
        max_size=60,
    )
)
@settings(deadline=None)
def test_what_is_counted_is_what_a_look_at_all_observations_finds(
    steps: list[tuple[int, bool, int, int, bool]],
) -> None:
    bench = Bench()
    connections: dict[int, End] = {}
    open_now: dict[int, tuple[int, int, bool]] = {}
    for slot, comes, seen, vantage, trusted in steps:
        if comes:
            who = RELAY if trusted else STRANGERS[slot % len(STRANGERS)]
            if slot not in connections:
                connections[slot], _ = linked(ALICE, who)
            connection = connections[slot]
            connection.local_addr = LISTENER
            connection.remote_addr = Multiaddr(f"/ip4/{20 + vantage // 4}.1.1.{vantage + 1}/tcp/1")
            bench.book.record(connection, Multiaddr(f"/ip4/5.5.5.{seen}/tcp/4001"))  # type: ignore[arg-type]
            open_now[slot] = seen, vantage, connection.remote_peer == RELAY.peer_id
        elif slot in connections:
            bench.book.forget(connections.pop(slot))  # type: ignore[arg-type]
            del open_now[slot]
    believed = naively_believed(list(open_now.values()))
    assert len(believed) <= PER_LISTENER
    assert set(bench.book.addrs()) == believed
