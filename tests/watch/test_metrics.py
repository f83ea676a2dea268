"""/metrics: go-libp2p's dashboards find what they ask for, and the figures are those of what happened."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

import flare
from flare.errors import DialFailed
from flare.events import PlainDialFailed, PunchGaveUp, PunchStarted, PunchSucceeded, ReachabilityChanged
from tests.support.aio import aio, eventually
from tests.support.loopback import echo, host, relay
from tests.watch.client import get
from tests.watch.test_server import ANYWHERE, scene

# What the panels of go-libp2p's dashboards query: each series, its type and its labels.
RELAYSVC = {
    "libp2p_relaysvc_status": ("gauge", set()),
    "libp2p_relaysvc_reservations_total": ("counter", {"type"}),
    "libp2p_relaysvc_reservation_request_response_status_total": ("counter", {"status"}),
    "libp2p_relaysvc_reservation_rejections_total": ("counter", {"reason"}),
    "libp2p_relaysvc_connections_total": ("counter", {"type"}),
    "libp2p_relaysvc_connection_request_response_status_total": ("counter", {"status"}),
    "libp2p_relaysvc_connection_rejections_total": ("counter", {"reason"}),
    "libp2p_relaysvc_connection_duration_seconds_sum": ("histogram", set()),
    "libp2p_relaysvc_connection_duration_seconds_count": ("histogram", set()),
    "libp2p_relaysvc_data_transferred_bytes_total": ("counter", set()),
}
HOLEPUNCH = {
    "libp2p_holepunch_outcomes_total": ("counter", {"side", "num_attempts", "outcome"}),
    "libp2p_holepunch_address_outcomes_total": (
        "counter",
        {"side", "num_attempts", "ipv", "transport", "outcome"},
    ),
    "libp2p_holepunch_direct_dials_total": ("counter", {"outcome"}),
}
_CONNECTION = {"dir", "transport", "security", "muxer", "early_muxer", "ip_version"}
SWARM = {
    "libp2p_swarm_connections_opened_total": ("counter", _CONNECTION),
    "libp2p_swarm_connections_closed_total": ("counter", _CONNECTION),
    "libp2p_swarm_connection_duration_seconds_bucket": ("histogram", {*_CONNECTION, "le"}),
    "libp2p_swarm_key_types_total": ("counter", {"dir", "key_type"}),
}
IDENTIFY = {
    "libp2p_identify_identify_total": ("counter", {"dir"}),
    "libp2p_identify_identify_push_total": ("counter", {"dir"}),
    "libp2p_identify_conn_push_support_total": ("counter", {"support"}),
    "libp2p_identify_protocols_count": ("gauge", set()),
    "libp2p_identify_addrs_count": ("gauge", set()),
    "libp2p_identify_protocols_received_bucket": ("histogram", {"le"}),
    "libp2p_identify_addrs_received_bucket": ("histogram", {"le"}),
}

AUTORELAY = {
    "libp2p_autorelay_status": ("gauge", set()),
    "libp2p_autorelay_desired_reservations": ("gauge", set()),
    "libp2p_autorelay_reservations_opened_total": ("counter", set()),
    "libp2p_autorelay_reservations_closed_total": ("counter", set()),
    "libp2p_autorelay_reservation_requests_outcome_total": ("counter", {"request_type", "outcome"}),
    "libp2p_autorelay_relay_addresses_updated_total": ("counter", set()),
    "libp2p_autorelay_relay_addresses_count": ("gauge", set()),
    "libp2p_autorelay_candidates_total": ("counter", {"type"}),
    "libp2p_autorelay_candidates_circuit_v2_support_total": ("counter", {"support"}),
}

TCP4 = flare.Multiaddr("/ip4/192.0.2.1/tcp/4001")
TCP6 = flare.Multiaddr("/ip6/2001:db8::1/tcp/4001")


class Scrape:
    """An exposition, parsed by prometheus-client itself."""

    def __init__(self, text: str) -> None:
        self.series: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        self.types: dict[str, str] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.series.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
                self.types[sample.name] = family.type

    def value(self, name: str, **labels: str) -> float:
        return self.series[name][tuple(sorted(labels.items()))]


async def scrape(status: flare.StatusServer) -> Scrape:
    answer = await get(status, "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(answer.text)


@aio
async def test_dashboards_of_go_libp2p_find_their_series() -> None:
    async with scene(flare.RelayLimits(max_reservations=2, circuit_bytes=0, circuit_duration=0)) as at:
        stranger = host(relays=at.relaying.full_addrs, punch=False)
        async with stranger:
            await eventually(lambda: sum(at.server.counters.reserve_answers.values()) == 3)
        with pytest.raises(DialFailed):
            await at.alice.connect(at.relaying.full_addrs[0] / f"/p2p-circuit/p2p/{stranger.peer_id}")
        await at.connection.close()
        await eventually(lambda: at.server.counters.circuits_closed == 1)
        await eventually(lambda: len(at.relaying.connections) == 2)
        found = await scrape(at.status)
        for name, (kind, labels) in (RELAYSVC | HOLEPUNCH | SWARM | IDENTIFY).items():
            assert name in found.series, f"no {name}"
            assert found.types[name] == kind, name
            assert {key for key, _ in next(iter(found.series[name]))} == labels, name


@aio
async def test_figures_are_of_what_happened() -> None:
    async with scene() as at:
        await at.carry(100_000)
        found = await scrape(at.status)
        name = "libp2p_relaysvc"
        assert found.value(f"{name}_status") == 1
        assert found.value(f"{name}_reservations_total", type="opened") == 2
        assert found.value(f"{name}_reservations_total", type="closed") == 0
        assert found.value(f"{name}_reservation_request_response_status_total", status="ok") == 2
        assert found.value(f"{name}_connections_total", type="opened") == 1
        assert found.value(f"{name}_connections_total", type="closed") == 0
        carried = found.value(f"{name}_data_transferred_bytes_total")
        assert carried > 200_000, "open circuits count too"
        inbound = {
            "dir": "inbound",
            "transport": "tcp",
            "security": "/tls/1.0.0",
            "muxer": "/yamux/1.0.0",
            "early_muxer": "false",
            "ip_version": "ip4",
        }
        assert found.value("libp2p_swarm_connections_opened_total", **inbound) == 2
        assert found.value("libp2p_swarm_connections_closed_total", **inbound) == 0
        assert found.value("libp2p_swarm_key_types_total", dir="inbound", key_type="Ed25519") == 2
        assert found.value("flare_relay_circuits") == 1
        assert found.value("flare_engine_splices", engine="0") == 1
        assert found.value("flare_engine_sent_bytes_total", engine="0") > carried
        assert found.value("process_resident_memory_bytes") > 1_000_000

        await at.connection.close()
        await eventually(lambda: at.server.counters.circuits_closed == 1)
        await at.bob.close()
        await eventually(lambda: at.server.reservations == 1)
        found = await scrape(at.status)
        assert found.value(f"{name}_reservations_total", type="closed") == 1
        assert found.value(f"{name}_connections_total", type="closed") == 1
        assert found.value(f"{name}_connection_duration_seconds_count") == 1
        assert found.value(f"{name}_data_transferred_bytes_total") >= carried
        assert found.value("libp2p_swarm_connections_closed_total", **inbound) == 1


@aio
async def test_refusals_in_go_libp2p_s_words_and_ours() -> None:
    async with scene(flare.RelayLimits(max_reservations=2)) as at:
        async with host(relays=at.relaying.full_addrs, punch=False):
            await eventually(lambda: sum(at.server.counters.reserve_answers.values()) == 3)
        found = await scrape(at.status)
        name = "libp2p_relaysvc_reservation"
        assert found.value(f"{name}_request_response_status_total", status="rejected") == 1
        assert found.value(f"{name}_rejections_total", reason="ip constraint violation") == 1
        refused = found.value("flare_relay_refusals_total", request="reserve", reason="max_reservations")
        assert refused == 1


@aio
async def test_what_was_open_before_counts_as_opened() -> None:
    async with relay() as (relaying, server), host() as other:
        await other.connect(*relaying.full_addrs)
        async with flare.StatusServer(server, ANYWHERE) as status:
            found = await scrape(status)
            assert sum(found.series["libp2p_swarm_connections_opened_total"].values()) == 1
        await other.close()


@aio
async def test_hole_punches() -> None:
    async with host() as plain, host() as met, flare.StatusServer(plain, ANYWHERE) as status:
        peer = met.peer_id
        await plain.connect(*met.full_addrs)
        other, third, fourth = (flare.Identity.generate().peer_id for _ in range(3))
        plain.emit(PunchStarted(peer, "initiator"))
        plain.emit(PunchSucceeded(peer, "direct/tcp", 2, 0.5, (TCP4, TCP6)))
        plain.emit(PunchStarted(other, "responder"))
        plain.emit(PunchGaveUp(other, "no luck", 7, 0.5, (TCP4, TCP4)))
        plain.emit(PunchStarted(fourth, "responder"))
        plain.emit(PunchGaveUp(fourth, "nothing to try", 1, 0.5))
        plain.emit(PlainDialFailed(third, "nobody answers"))
        plain.emit(PunchSucceeded(third, "direct/tcp", 0, 0.1))
        found = await scrape(status)
        name = "libp2p_holepunch_outcomes_total"
        assert found.value(name, side="initiator", num_attempts="2", outcome="success") == 1
        assert found.value(name, side="receiver", num_attempts="> 5", outcome="failed") == 1
        assert found.value(name, side="initiator", num_attempts="1", outcome="success") == 0, "from the start"
        assert found.value("libp2p_holepunch_direct_dials_total", outcome="success") == 1
        assert found.value("libp2p_holepunch_direct_dials_total", outcome="failed") == 1
        assert found.value(name, side="receiver", num_attempts="1", outcome="no_suitable_address") == 1
        assert sum(found.series[name].values()) == 3
        name = "libp2p_holepunch_address_outcomes_total"
        began = {"side": "initiator", "num_attempts": "2", "transport": "tcp"}
        assert found.value(name, ipv="ip4", outcome="success", **began) == 1
        assert found.value(name, ipv="ip6", outcome="cancelled", **began) == 1
        answered = {"side": "receiver", "num_attempts": "> 5", "transport": "tcp"}
        assert found.value(name, ipv="ip4", outcome="failed", **answered) == 1, "kinds, not addresses"
        assert sum(found.series[name].values()) == 3


@aio
async def test_each_data_thread_has_its_engine() -> None:
    """Scraped while threads move the bytes, and while circuits join two of them."""
    config = flare.Config(data_threads=2)
    async with (
        host(config=config) as relaying,
        flare.RelayServer(relaying, flare.RelayLimits.unlimited()) as server,
        flare.StatusServer(server, ANYWHERE) as status,
        host(relays=relaying.full_addrs, punch=False) as bob,
        host(relays=relaying.full_addrs, punch=False) as alice,
    ):
        bob.handle("/echo/1", echo)
        await eventually(lambda: server.reservations == 2)
        await eventually(lambda: any(addr.is_circuit for addr in bob.addrs))
        connection = await alice.connect(bob.peer_id)
        async with connection.open_stream("/echo/1") as stream:
            await stream.write(bytes(100_000))
            await stream.close_write()
            await stream.read_exactly(100_000)
        found = await scrape(status)
        sent = found.series["flare_engine_sent_bytes_total"]
        assert len(sent) == len(relaying.engines) >= 2
        assert sum(sent.values()) > found.value("libp2p_relaysvc_data_transferred_bytes_total") > 200_000
        assert sum(found.series["flare_engine_splices"].values()) == 1
        assert (await get(status, "/")).status == 200


@aio
async def test_auto_relay() -> None:
    async with (
        relay() as (one, _),
        relay(flare.RelayLimits(max_reservations=0)) as (full, _),
        host() as plain,
        host() as ours,
        flare.AutoRelay(ours, [at.full_addrs[0] for at in (one, full, plain)]) as auto,
        flare.StatusServer(ours, ANYWHERE, auto_relay=auto) as status,
    ):
        counters = auto.keeping.counters
        await eventually(
            lambda: auto.relays and counters.no_relays and len(counters.outcomes) == 3, timeout=15
        )
        found = await scrape(status)
        for name, (kind, labels) in AUTORELAY.items():
            assert name in found.series, f"no {name}"
            assert found.types[name] == kind, name
            assert {key for key, _ in next(iter(found.series[name]))} == labels, name
        name = "libp2p_autorelay"
        assert found.value(f"{name}_status") == 1
        assert found.value(f"{name}_desired_reservations") == 2
        assert found.value(f"{name}_reservations_opened_total") == 1
        assert found.value(f"{name}_reservations_closed_total") == 0
        outcomes = f"{name}_reservation_requests_outcome_total"
        assert found.value(outcomes, request_type="new", outcome="success") == 1
        assert found.value(outcomes, request_type="refresh", outcome="success") == 0
        assert found.value(outcomes, request_type="new", outcome="reservation refused") >= 1
        assert found.value(outcomes, request_type="new", outcome="err other") >= 1
        assert found.value(f"{name}_relay_addresses_count") >= 1
        assert found.value(f"{name}_relay_addresses_updated_total") == 1
        assert found.value(f"{name}_candidates_total", type="added") == 3
        assert found.value(f"{name}_candidates_circuit_v2_support_total", support="no") >= 1
        ours.emit(ReachabilityChanged("public"))
        await eventually(lambda: not auto.relays)
        found = await scrape(status)
        assert found.value(f"{name}_status") == 0
        assert found.value(f"{name}_reservations_closed_total") == 1
    async with host() as ours, flare.StatusServer(ours, ANYWHERE) as status:
        assert not [name for name in (await scrape(status)).series if "autorelay" in name]
