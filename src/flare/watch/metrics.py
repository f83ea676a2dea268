"""/metrics in Prometheus' text format: go-libp2p's names and labels where it has the thing, else flare_*.

So go-libp2p's Grafana dashboards read a flare relay as they are. This is the only module that needs
prometheus-client, which the extra flare-p2p[metrics] brings. Families are made anew for each scrape.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from flare.auto_relay import AutoRelay
from flare.relay_server import RelayServer
from flare.version import __version__
from flare.watch.tally import Histogram, Tally
from flare.watch.watcher import Watcher, refusals
from flare.wire.messages import Status

CONNECTION: Final = ("dir", "transport", "security", "muxer", "early_muxer", "ip_version")
TRANSPORT: Final = ("transport",)
PUNCH: Final = ("side", "num_attempts", "outcome")
PUNCH_ADDR: Final = ("side", "num_attempts", "ipv", "transport", "outcome")
# What go-libp2p has at 0 from the start, so that an increase from nothing shows.
PUNCHES: Final = tuple(
    product(("initiator", "receiver"), "1234", ("success", "failed", "no_suitable_address"))
)
PUNCHED_ADDRS: Final = tuple(
    product(
        ("initiator", "receiver"),
        "1234",
        ("ip4", "ip6"),
        ("tcp", "quic-v1"),
        ("success", "failed", "cancelled", "no_suitable_address"),
    )
)
ENGINE: Final = (
    ("passes", "passes", "Passes of the data plane over what was ready"),
    ("receives", "receives", "Receive calls that brought bytes"),
    ("sends", "sends", "Send calls"),
    ("bytes_in", "received_bytes", "Bytes received on the wire"),
    ("bytes_out", "sent_bytes", "Bytes sent on the wire"),
    ("events", "events", "Events handed to Python"),
)
_REJECTED: Final = {  # go-libp2p's words for the wire's status codes
    Status.RESERVATION_REFUSED: "ip constraint violation",
    Status.RESOURCE_LIMIT_EXCEEDED: "resource limit exceeded",
    Status.PERMISSION_DENIED: "permission denied",
    Status.NO_RESERVATION: "no reservation",
    Status.MALFORMED_MESSAGE: "malformed message",
}


Labelled = Mapping[Any, int]  # by a tuple of the labels' values


class Exporter:
    """Answers scrapes: what flare counts is read on the loop in one pass, the text is made in a thread."""

    content_type: Final = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    async def scrape(self) -> bytes:
        """The whole exposition."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Ready(list(families(self._watcher))))
        return await asyncio.to_thread(_expose, registry)


def _expose(registry: CollectorRegistry) -> bytes:
    # Of the process: it lists every open descriptor, which takes a while where there are many.
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return generate_latest(registry)


class _Ready(Collector):
    """Families that are made."""

    def __init__(self, made: Sequence[Metric]) -> None:
        self._made = made

    def collect(self) -> Iterable[Metric]:
        return self._made


def families(watcher: Watcher) -> Iterator[Metric]:
    """All that flare itself tells."""
    relay = watcher.relay
    yield _gauge("libp2p_relaysvc_status", "1 while a relay is served", float(relay is not None))
    if relay is not None:
        yield from _relay_service(watcher, relay)
        yield from _relay_own(relay)
    if watcher.auto_relay is not None:
        yield from _auto_relay(watcher.auto_relay)
    yield from _holepunch(watcher.tally)
    yield from _swarm(watcher.tally)
    yield from _identify(watcher)
    yield from _host(watcher)


# -- go-libp2p's


def _relay_service(watcher: Watcher, relay: RelayServer) -> Iterator[Metric]:
    counters = relay.counters
    name = "libp2p_relaysvc"
    opened = counters.reservations_opened
    yield _counter(
        f"{name}_reservations",
        "Reservations that began, were refreshed, and ended",
        ("type",),
        {
            ("opened",): opened,
            ("renewed",): counters.reservations_renewed,
            ("closed",): opened - relay.reservations,  # however they ended
        },
    )
    yield _counter(
        f"{name}_connections",
        "Circuits that began and ended",
        ("type",),
        {("opened",): counters.circuits_opened, ("closed",): counters.circuits_closed},
    )
    for kind, answers in (
        ("reservation", counters.reserve_answers),
        ("connection", counters.connect_answers),
    ):
        statuses = {("ok",): 0, ("rejected",): 0, ("error",): 0}
        reasons: dict[tuple[str, ...], int] = {}
        for status, count in answers.items():
            reason = _REJECTED.get(Status(status))
            answer = "ok" if status == Status.OK else "rejected" if reason else "error"
            statuses[answer,] += count
            if reason:
                reasons[reason,] = count
        yield _counter(
            f"{name}_{kind}_request_response_status", f"Answers to {kind} requests", ("status",), statuses
        )
        yield _counter(
            f"{name}_{kind}_rejections", f"Why {kind} requests were rejected", ("reason",), reasons
        )
    yield _histogram(
        f"{name}_connection_duration_seconds",
        "How long circuits were open",
        (),
        {(): watcher.tally.circuit_seconds},
    )
    yield _counter(
        f"{name}_data_transferred_bytes",
        "Bytes that circuits carried, both directions",
        (),
        {(): watcher.relayed(relay)},
    )


def _auto_relay(auto: AutoRelay) -> Iterator[Metric]:
    name = "libp2p_autorelay"
    counters, choice = auto.keeping.counters, auto.keeping.choice
    circuits = [addr for addr in auto.host.addrs if addr.is_circuit]
    yield _gauge(f"{name}_status", "1 while relays are looked for and kept", float(auto.running))
    yield _gauge(f"{name}_desired_reservations", "Reservations wanted", auto.keeping.config.wanted)
    yield _counter(f"{name}_reservations_opened", "Reservations that began", (), {(): counters.opened})
    yield _counter(f"{name}_reservations_closed", "Reservations that ended", (), {(): counters.closed})
    outcomes = {("new", "success"): 0, ("refresh", "success"): 0} | dict(counters.outcomes)
    yield _counter(
        f"{name}_reservation_requests_outcome",
        "What became of requests for reservations",
        ("request_type", "outcome"),
        outcomes,
    )
    yield _gauge(f"{name}_relay_addresses_count", "Our addresses through relays", len(circuits))
    yield _counter(
        f"{name}_relay_addresses_updated", "How often those changed", (), {(): auto.address_changes}
    )
    yield _counter(
        f"{name}_candidates", "Relays that we heard of, and forgot", ("type",),
        {("added",): choice.added, ("removed",): choice.removed},
    )  # fmt: skip
    yield _counter(
        f"{name}_candidates_circuit_v2_support",
        "Candidates that relay, or turned out not to",
        ("support",),
        {("yes",): counters.relays, ("no",): counters.no_relays},
    )


def _holepunch(tally: Tally) -> Iterator[Metric]:
    name = "libp2p_holepunch"
    yield _counter(
        f"{name}_outcomes",
        "How hole punches ended",
        PUNCH,
        dict.fromkeys(PUNCHES, 0) | dict(tally.punches),
    )
    yield _counter(
        f"{name}_address_outcomes",
        "What became of the kinds of addresses that hole punches tried",
        PUNCH_ADDR,
        dict.fromkeys(PUNCHED_ADDRS, 0) | dict(tally.punched_addrs),
    )
    yield _counter(
        f"{name}_direct_dials",
        "Plain dials of peers that seemed public, before or instead of a hole punch",
        ("outcome",),
        {("success",): tally.direct_dials["success"], ("failed",): tally.direct_dials["failed"]},
    )


def _swarm(tally: Tally) -> Iterator[Metric]:
    name = "libp2p_swarm"
    yield _counter(f"{name}_connections_opened", "Connections that began", CONNECTION, tally.opened)
    # at 0 from the start, or opened minus closed would have no value
    closed = dict.fromkeys(tally.opened, 0) | dict(tally.closed)
    yield _counter(f"{name}_connections_closed", "Connections that ended", CONNECTION, closed)
    yield _counter(f"{name}_key_types", "Peers' keys", ("dir", "key_type"), tally.key_types)
    yield _histogram(
        f"{name}_connection_duration_seconds", "How long connections lasted", CONNECTION, tally.durations
    )


def _identify(watcher: Watcher) -> Iterator[Metric]:
    tally, host = watcher.tally, watcher.host
    name = "libp2p_identify"
    yield _counter(f"{name}_identify", "Peers identified", ("dir",), {("outbound",): tally.identified})
    yield _counter(
        f"{name}_identify_push", "Identify pushes of peers", ("dir",), {("inbound",): tally.pushes}
    )
    support = {("supported",): 0, ("not supported",): 0}
    support |= {(kind,): count for kind, count in tally.push_support.items()}
    yield _counter(f"{name}_conn_push_support", "Who takes identify pushes", ("support",), support)
    yield _gauge(f"{name}_protocols_count", "Protocols we tell", len(host.handlers.protocols))
    yield _gauge(f"{name}_addrs_count", "Addresses we tell", len(host.addrs))
    yield _histogram(
        f"{name}_protocols_received", "Protocols that peers told", (), {(): tally.protocols_received}
    )
    yield _histogram(f"{name}_addrs_received", "Addresses that peers told", (), {(): tally.addrs_received})


# -- flare's own


def _relay_own(relay: RelayServer) -> Iterator[Metric]:
    limits = relay.limits
    yield _gauge("flare_relay_draining", "1 while new reservations are refused", float(relay.draining))
    yield _gauge("flare_relay_reservations", "Reservations held", relay.reservations)
    yield _gauge("flare_relay_reservations_limit", "RelayLimits.max_reservations", limits.max_reservations)
    yield _gauge("flare_relay_circuits", "Circuits open", relay.circuits)
    yield _gauge("flare_relay_circuits_limit", "RelayLimits.max_circuits, 0: none", limits.max_circuits)
    yield _counter(
        "flare_relay_refusals",
        "Requests refused",
        ("request", "reason"),
        {(refusal.request, refusal.reason): refusal.count for refusal in refusals(relay)},
    )


def _host(watcher: Watcher) -> Iterator[Metric]:
    engines = watcher.host.engines
    read = [engine.counters for engine in engines]
    for key, name, text in ENGINE:
        values = {(str(index),): int(counters[key]) for index, counters in enumerate(read)}  # type: ignore[literal-required]
        yield _counter(f"flare_engine_{name}", text, ("engine",), values)
    for name, text, sizes in (
        ("links", "Links that the engine drives", [len(engine.links) for engine in engines]),
        ("splices", "Circuits that the engine carries", [len(engine.splices) for engine in engines]),
    ):
        family = GaugeMetricFamily(f"flare_engine_{name}", text, labels=("engine",))
        for index, count in enumerate(sizes):
            family.add_metric((str(index),), count)
        yield family
    newcomers = watcher.host.admissions
    refused = {(kind,): admission.refused for kind, admission in newcomers.items()}
    yield _counter("flare_newcomers_refused", "Inbound connections refused by HostLimits", TRANSPORT, refused)
    evicted = {(kind,): admission.evicted for kind, admission in newcomers.items()}
    yield _counter("flare_handshakes_evicted", "Handshakes that had to make room", TRANSPORT, evicted)
    handshakes = GaugeMetricFamily("flare_handshakes", "Inbound handshakes that run", labels=TRANSPORT)
    for kind, admission in newcomers.items():
        handshakes.add_metric((kind,), admission.handshakes)
    yield handshakes
    yield _gauge("flare_known_peers", "Peers in the peer book", len(watcher.host.peers))
    yield _gauge(
        "flare_loop_lag_seconds",
        "The most that the event loop came late by in the last ten seconds",
        watcher.pulse.lag,
    )
    yield _gauge("flare_healthy", "1 when /healthz says ok", float(watcher.health().ok))
    info = GaugeMetricFamily("flare_build_info", "Always 1", labels=("version", "agent"))
    info.add_metric((__version__, watcher.host.agent), 1)
    yield info


# -- families


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, labels: Sequence[str], values: Labelled) -> Metric:
    """`name` without _total, which the text has."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _histogram(name: str, text: str, labels: Sequence[str], values: Mapping[Any, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, histogram in values.items():
        family.add_metric(key, histogram.cumulative(), histogram.sum)
    return family
