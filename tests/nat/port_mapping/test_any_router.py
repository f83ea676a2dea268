"""Routers that do anything at any time, under virtual time: what holds whatever they do."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from flare.errors import DecodeError, NetworkError, PortMappingRefused, TimedOut
from flare.events import PortMapped, PortMappingFailed, PortMappingLost
from flare.lab import virtual
from flare.nat.port_mapping.lease import MappingGone
from tests.nat.port_mapping.bench import CONFIG, QUIC, TCP, Bench, Failure, Protocol

STEPS = ("probe", "map", "renew", "check", "unmap")
FAILURES: tuple[Failure, ...] = (
    TimedOut("an answer", 5),
    NetworkError("nobody listens there"),
    DecodeError("rubbish"),
    PortMappingRefused("no", code=2, lasting=600),
    MappingGone("gone"),
    ValueError("a fault of ours"),
)
deeds = st.one_of(
    st.tuples(st.just("fail"), st.sampled_from(STEPS), st.sampled_from(FAILURES)),
    st.tuples(st.just("mend"), st.sampled_from(STEPS), st.none()),
    st.tuples(st.just("forget"), st.none(), st.none()),
    st.tuples(st.just("delay"), st.sampled_from((0.0, 0.01, 4.0, 100.0)), st.none()),
    st.tuples(st.just("lifetime"), st.sampled_from((1.0, 20.0, 7200.0, 2.0**32)), st.none()),
    st.tuples(st.just("address"), st.sampled_from(("102.1.0.1", "102.1.0.2", "0.0.0.0")), st.none()),
    st.tuples(st.just("wake"), st.none(), st.none()),
    st.tuples(st.just("want"), st.sampled_from(((), (TCP,), (QUIC,), (TCP, QUIC))), st.none()),
)
scripts = st.lists(
    st.tuples(st.sampled_from((0.0, 0.005, 1.0, 30.0, 4000.0)), st.integers(0, 1), deeds), max_size=12
)


async def live(script: list[tuple[float, int, tuple[str, object, object]]]) -> None:
    protocols = [Protocol("PCP"), Protocol("UPnP", delay=0.5)]
    bench = Bench(*protocols, wanted=(TCP, QUIC))
    async with bench:
        for wait, which, (deed, what, how) in script:
            await asyncio.sleep(wait)
            protocol = protocols[which]
            match deed:
                case "fail":
                    protocol.failing[what] = how  # type: ignore[index, assignment]
                case "mend":
                    protocol.failing.pop(what, None)  # type: ignore[call-overload]
                case "forget":
                    protocol.table.clear()
                case "delay":
                    protocol.delay = what  # type: ignore[assignment]
                case "lifetime":
                    protocol.lifetime = what  # type: ignore[assignment]
                case "address":
                    protocol.external = ip_address(what)  # type: ignore[arg-type]
                case "wake":
                    bench.router.wake()
                case "want":
                    bench.router.want(what)  # type: ignore[arg-type]
            assert set(bench.router.leases) <= {TCP, QUIC}
        assert not bench.task.done(), "it goes on, whatever happens"
        asked = [at for protocol in protocols for at, step in protocol.done]
        for at in asked:  # nobody is pestered: two protocols, two listeners, a few questions each at once
            assert sum(at <= other < at + CONFIG.renew_at_least / 2 for other in asked) <= 30
        # and once the router behaves, everything is mapped again
        for protocol in protocols:
            protocol.failing.clear()
            protocol.delay = 0.01
        await asyncio.sleep(CONFIG.backoff_max + CONFIG.verify + 200)
        wanted = set(bench.router._wanted)
        assert set(bench.router.leases) == wanted
        assert set().union(*(protocol.table for protocol in protocols)) >= wanted
    held: set[object] = set()
    for event in bench.of(object):
        if isinstance(event, PortMapped):
            held.add(event.external)
        elif isinstance(event, PortMappingLost):
            assert event.external in held, "nothing is lost that was not had"
            held.discard(event.external)
        else:
            assert isinstance(event, PortMappingFailed)
            assert 0 < event.retry_in <= CONFIG.backoff_max
    assert not held, "at the end everything was taken back, and said so"
    assert not bench.router.leases


@settings(max_examples=60)
@given(scripts)
def test_whatever_a_router_does(script: list[tuple[float, int, tuple[str, object, object]]]) -> None:
    virtual.run(live(script))
