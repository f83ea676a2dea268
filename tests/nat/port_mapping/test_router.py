"""One router under virtual time: all protocols at once, half life, back-off, restarts, what is given back."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from flare.errors import DecodeError, NetworkError, PortMappingRefused, TimedOut
from flare.events import PortMapped, PortMappingFailed, PortMappingLost
from flare.nat.port_mapping.lease import MappingGone
from tests.nat.port_mapping.bench import CONFIG, FOREVER, QUIC, TCP, Bench, Protocol
from tests.support.linked import now, simulated

SILENCE = TimedOut("an answer", 5)
NO = PortMappingRefused("PCP: not authorized", code=2)


class TestProbing:
    @simulated
    async def test_all_are_asked_at_once(self) -> None:
        protocols = [Protocol(name, delay=1.0) for name in ("PCP", "NAT-PMP", "UPnP")]
        async with Bench(*protocols):
            await asyncio.sleep(0.5)
            assert [protocol.times("probe") for protocol in protocols] == [[0.0], [0.0], [0.0]]

    @simulated
    async def test_the_best_maps_when_it_answers_first(self) -> None:
        best, second = Protocol("PCP"), Protocol("NAT-PMP", delay=2.0)
        async with Bench(best, second) as bench:
            await asyncio.sleep(0.5)
            (mapped,) = bench.of(PortMapped)
            assert (mapped.protocol, mapped.listener, str(mapped.external)) == (
                "PCP",
                TCP,
                "/ip4/102.1.0.1/tcp/4001",
            )
            assert mapped.lifetime == 7200.0

    @pytest.mark.parametrize(("late", "winner"), [(-0.01, "PCP"), (0.01, "UPnP")])
    @simulated
    async def test_a_better_one_may_come_a_little_later(self, late: float, winner: str) -> None:
        best, third = Protocol("PCP", delay=1.0 + CONFIG.preference + late), Protocol("UPnP", delay=1.0)
        async with Bench(best, third) as bench:
            await asyncio.sleep(5)
            assert [event.protocol for event in bench.of(PortMapped)] == [winner]

    @simulated
    async def test_a_worse_one_is_not_waited_for(self) -> None:
        async with Bench(Protocol("PCP"), Protocol("UPnP", delay=60.0)) as bench:
            await asyncio.sleep(0.1)
            assert bench.when(PortMapped) == [0.02]

    @simulated
    async def test_nobody_but_the_one_that_maps_changes_anything(self) -> None:
        best, second = Protocol("PCP"), Protocol("NAT-PMP")
        async with Bench(best, second):
            await asyncio.sleep(1)
        assert [step for _, step in second.done] == ["probe"]
        assert [step for _, step in best.done] == ["probe", "map", "unmap"]

    @simulated
    async def test_the_next_best_maps_when_the_best_refuses(self) -> None:
        best, slow = Protocol("PCP"), Protocol("UPnP", delay=3.0)
        best.failing["map"] = NO
        async with Bench(best, slow) as bench:
            await asyncio.sleep(10)
            assert [event.protocol for event in bench.of(PortMapped)] == ["UPnP"], (
                "though it was found out later"
            )
            assert not bench.of(PortMappingFailed)

    @simulated
    async def test_when_nobody_answers_it_says_so_and_waits_longer_each_time(self) -> None:
        protocols = [Protocol("PCP"), Protocol("UPnP", delay=1.0)]
        for protocol, error in zip(protocols, (NetworkError("nobody listens there"), SILENCE), strict=True):
            protocol.failing["probe"] = error
        async with Bench(*protocols) as bench:
            await asyncio.sleep(3 * 3600)
        first, *_ = failures = bench.of(PortMappingFailed)
        assert first.listener is None
        assert first.reason == (
            "the router at 10.0.0.1 maps no ports: PCP: nobody listens there; "
            "UPnP: an answer took longer than 5 s"
        )
        assert [event.retry_in for event in failures][:9] == [15, 30, 60, 120, 240, 480, 960, 1800, 1800]
        assert protocols[0].times("probe")[1] == 1.0 + 15.0

    @simulated
    async def test_it_is_found_once_it_speaks(self) -> None:
        protocol = Protocol()
        protocol.failing["probe"] = SILENCE
        async with Bench(protocol) as bench:
            await asyncio.sleep(20)
            protocol.failing.clear()
            await asyncio.sleep(30)
            assert bench.of(PortMapped)

    @simulated
    async def test_news_of_it_ends_the_wait(self) -> None:
        protocol = Protocol()
        protocol.failing["probe"] = SILENCE
        async with Bench(protocol) as bench:
            await asyncio.sleep(2)
            protocol.failing.clear()
            bench.router.wake()
            await asyncio.sleep(0.1)
            assert bench.of(PortMapped)

    @simulated
    async def test_a_fault_of_ours_costs_only_that_protocol(self, caplog: pytest.LogCaptureFixture) -> None:
        broken, good = Protocol("PCP"), Protocol("UPnP")
        broken.failing["probe"] = ValueError("oops")
        async with Bench(broken, good) as bench:
            await asyncio.sleep(1)
            assert bench.of(PortMapped)
            assert "oops" in bench.router.said["PCP"]
            assert bench.router.said["UPnP"] == ""


class TestHolding:
    @simulated
    async def test_it_is_renewed_at_half_life(self) -> None:
        protocol = Protocol(lifetime=400.0)
        async with Bench(protocol, verify=10_000.0) as bench:
            await asyncio.sleep(1000)
        assert [round(at) for at in protocol.times("renew")] == [200, 400, 600, 800]
        assert len(bench.of(PortMapped)) == 5, "renewals are told"
        assert not protocol.times("check")

    @simulated
    async def test_chance_takes_at_most_its_share_of_the_wait(self) -> None:
        protocol = Protocol(lifetime=400.0)
        async with Bench(protocol, verify=10_000.0, share=0.0):
            await asyncio.sleep(190)
        assert [round(at) for at in protocol.times("renew")] == [180]

    @pytest.mark.parametrize(
        ("lifetime", "after"),
        [
            (1.0, 4.0),
            (8.0, 4.0),
            (9.0, 4.5),
            (86_400.0, 43_200.0),
            (86_402.0, 43_200.0),
            (2.0**32 - 1, 43_200.0),
        ],
    )
    @simulated
    async def test_a_router_cannot_make_it_ask_all_the_time_or_never(
        self, lifetime: float, after: float
    ) -> None:
        protocol = Protocol(lifetime=lifetime)
        async with Bench(protocol, verify=1e6):
            await asyncio.sleep(after + 0.5)
        assert [round(at, 1) for at in protocol.times("renew")] == [after]

    @simulated
    async def test_one_without_end_is_renewed_too(self) -> None:
        protocol = Protocol(lifetime=FOREVER)
        async with Bench(protocol, verify=1e6) as bench:
            await asyncio.sleep(CONFIG.renew_at_most + 1)
            assert bench.of(PortMapped)[0].lifetime is None
        assert len(protocol.times("renew")) == 1

    @simulated
    async def test_a_renewal_that_gives_no_more_time_is_repeated_at_half_of_the_rest(self) -> None:
        protocol = Protocol(lifetime=800.0)
        protocol.gives_more = False
        async with Bench(protocol, verify=1e6):
            await asyncio.sleep(760)
        assert [round(at) for at in protocol.times("renew")] == [400, 600, 700, 750]

    @simulated
    async def test_it_is_looked_at_in_between(self) -> None:
        protocol = Protocol(lifetime=2000.0)
        async with Bench(protocol) as bench:
            await asyncio.sleep(999)
            assert [round(at) for at in protocol.times("check")] == [300, 600, 900]
            assert len(bench.of(PortMapped)) == 1, "which is no news"

    @simulated
    async def test_one_that_is_gone_is_made_again_at_once(self) -> None:
        protocol = Protocol()
        async with Bench(protocol) as bench:
            await asyncio.sleep(290)
            protocol.table.clear()
            await asyncio.sleep(11)
            (lost,) = bench.of(PortMappingLost)
            assert lost.reason == "the router has it no more"
            assert len(bench.of(PortMapped)) == 2
            assert bench.when(PortMapped)[1] - bench.when(PortMappingLost)[0] == pytest.approx(0.01)

    @simulated
    async def test_one_that_goes_again_and_again_is_made_more_and_more_slowly(self) -> None:
        protocol = Protocol(lifetime=8.0)
        protocol.failing["renew"] = MappingGone("gone")
        async with Bench(protocol):
            await asyncio.sleep(120)
        gaps = [round(b - a) for a, b in zip(protocol.times("map"), protocol.times("map")[1:], strict=False)]
        assert gaps[:3] == [4, 19, 34]

    @simulated
    async def test_another_address_is_told(self) -> None:
        protocol = Protocol()
        async with Bench(protocol) as bench:
            await asyncio.sleep(1)
            protocol.external = ip_address("102.1.0.9")
            await asyncio.sleep(300)
            assert [str(event.external) for event in bench.of(PortMapped)] == [
                "/ip4/102.1.0.1/tcp/4001",
                "/ip4/102.1.0.9/tcp/4001",
            ]
            (lost,) = bench.of(PortMappingLost)
            assert str(lost.external) == "/ip4/102.1.0.1/tcp/4001"
            assert bench.router.leases[TCP].external == ip_address("102.1.0.9")

    @simulated
    async def test_a_refused_renewal_loses_it(self) -> None:
        protocol = Protocol(lifetime=200.0)
        async with Bench(protocol) as bench:
            protocol.failing["renew"] = NO
            await asyncio.sleep(101)
            assert bench.of(PortMappingLost)[0].reason == "PCP: not authorized"


class TestSilence:
    @simulated
    async def test_a_question_without_an_answer_is_repeated_soon(self) -> None:
        protocol = Protocol()
        async with Bench(protocol) as bench:
            await asyncio.sleep(299)
            protocol.failing["check"] = SILENCE
            await asyncio.sleep(4)
            protocol.failing.clear()
            await asyncio.sleep(300)
            assert [round(at) for at in protocol.times("check")[:2]] == [300, 304]
            assert not bench.of(PortMappingLost)

    @simulated
    async def test_too_many_and_it_counts_as_lost_and_the_router_is_looked_for_again(self) -> None:
        protocol = Protocol()
        async with Bench(protocol, wanted=(TCP, QUIC)) as bench:
            await asyncio.sleep(1)
            for step in ("check", "map", "probe"):
                protocol.failing[step] = SILENCE
            await asyncio.sleep(400)
            lost = bench.of(PortMappingLost)
            assert {event.listener for event in lost} == {TCP, QUIC}
            assert lost[0].reason == "PCP: an answer took longer than 5 s"
            assert len(protocol.times("check")) == 2 * CONFIG.tries
            assert not bench.router.leases
            protocol.failing.clear()
            await asyncio.sleep(100)
            assert set(bench.router.leases) == {TCP, QUIC}

    @simulated
    async def test_what_runs_out_meanwhile_is_lost(self) -> None:
        protocol = Protocol(lifetime=10.0)
        async with Bench(protocol, tries=100) as bench:
            await asyncio.sleep(1)
            protocol.failing["renew"] = SILENCE
            await asyncio.sleep(12)
            assert bench.when(PortMappingLost) == [pytest.approx(10.03, abs=0.02)]

    @simulated
    async def test_a_router_that_answers_probes_and_maps_nothing_is_not_pestered(self) -> None:
        protocol = Protocol()
        protocol.failing["map"] = DecodeError("rubbish", protocol="pcp")
        async with Bench(protocol) as bench:
            await asyncio.sleep(100)
        assert [event.retry_in for event in bench.of(PortMappingFailed)] == [15, 30, 60]
        assert bench.of(PortMappingFailed)[0].listener == TCP

    @pytest.mark.parametrize(("lasting", "wait"), [(0.0, 15.0), (600.0, 600.0), (2.0**32 - 1, 1800.0)])
    @simulated
    async def test_an_error_that_lasts_is_believed_up_to_a_limit(self, lasting: float, wait: float) -> None:
        protocol = Protocol()
        protocol.failing["map"] = PortMappingRefused("PCP: no resources", code=8, lasting=lasting)
        async with Bench(protocol) as bench:
            await asyncio.sleep(1)
            assert [event.retry_in for event in bench.of(PortMappingFailed)] == [wait]


class TestNews:
    @simulated
    async def test_a_restart_has_everything_looked_at_at_once(self) -> None:
        protocol = Protocol()
        async with Bench(protocol, wanted=(TCP, QUIC)) as bench:
            await asyncio.sleep(100)
            protocol.table.clear()
            bench.router.wake()
            await asyncio.sleep(0.1)
            assert set(protocol.table) == {TCP, QUIC}

    @simulated
    async def test_news_without_end_is_acted_on_now_and_then(self) -> None:
        protocol = Protocol()
        async with Bench(protocol) as bench:
            await asyncio.sleep(50)
            for _ in range(1000):
                bench.router.wake()
                await asyncio.sleep(0.1)
        assert len(protocol.times("check")) <= 100 / CONFIG.hush + 1


class TestListeners:
    @simulated
    async def test_one_that_is_gone_is_given_back_and_a_new_one_mapped(self) -> None:
        protocol = Protocol()
        async with Bench(protocol) as bench:
            await asyncio.sleep(1)
            bench.router.want([QUIC])
            await asyncio.sleep(1)
            assert set(protocol.table) == {QUIC}
            assert set(bench.router.leases) == {QUIC}
            assert bench.of(PortMappingLost)[0].listener == TCP

    @simulated
    async def test_the_most_listeners_and_one_more(self) -> None:
        from flare.wire.multiaddr import Multiaddr

        many = tuple(Multiaddr(f"/ip4/10.0.0.2/tcp/{4000 + n}") for n in range(CONFIG.max_listeners + 1))
        for wanted in (many[:-1], many):
            protocol = Protocol()
            async with Bench(protocol, wanted=wanted):
                await asyncio.sleep(1)
                assert len(protocol.table) == CONFIG.max_listeners


class TestTheEnd:
    @simulated
    async def test_everything_is_given_back(self) -> None:
        protocol = Protocol()
        async with Bench(protocol, wanted=(TCP, QUIC)) as bench:
            await asyncio.sleep(1)
        assert not protocol.table
        assert [event.reason for event in bench.of(PortMappingLost)] == ["it was given back"] * 2

    @simulated
    async def test_a_router_that_does_not_answer_delays_it_so_long_and_no_longer(self) -> None:
        protocol = Protocol()
        bench = Bench(protocol)
        async with bench:
            await asyncio.sleep(1)
            protocol.delay = 1000.0
            began = now()
        assert now() - began == pytest.approx(CONFIG.farewell)

    @simulated
    async def test_what_comes_while_leaving_is_given_back_too(self) -> None:
        protocol = Protocol(delay=0.5)
        async with Bench(protocol):
            await asyncio.sleep(0.9)  # probed, and half way through mapping
            assert not protocol.table
        assert [step for _, step in protocol.done] == ["probe", "map", "unmap"]
        assert not protocol.table

    @simulated
    async def test_a_refusal_to_take_it_back_is_nobodys_business(self) -> None:
        protocol = Protocol()
        async with Bench(protocol):
            await asyncio.sleep(1)
            protocol.failing["unmap"] = NO

    @simulated
    async def test_before_anything_is_known(self) -> None:
        protocol = Protocol(delay=1000.0)
        began = now()
        async with Bench(protocol):
            pass
        assert now() == began
