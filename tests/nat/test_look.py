"""nat/look.py on virtual time: when the NAT is looked at, and what is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from flare.config import Timeouts
from flare.nat import look
from flare.nat.behaviour import Behaviour, Filtering, Lifetime, Mapping
from flare.nat.look import MEASURE, RECHECK, RETRY, SECOND, Looking
from flare.nat.vantage import Vantage
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.linked import ALICE, linked, now, simulated

WHOLE = Behaviour(
    "udp", Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT, external="11.0.0.1"
)
SERVERS = [Identity.generate() for _ in range(5)]


def vantage(number: int, *, trusted: bool = True) -> Vantage:
    connection, _ = linked(ALICE, SERVERS[number])
    addr = Multiaddr(f"/ip4/{21 + number}.0.0.1/udp/1/quic-v1")
    return Vantage(SERVERS[number].peer_id, (addr,), connection, trusted)  # type: ignore[arg-type]


class Scene:
    """`says` is what each look finds, one behaviour after the other, `took` how long it takes."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *says: Behaviour, took: float = 1.0, lifetime: Any = None
    ) -> None:
        self.says = list(says) or [WHOLE]
        self.took = took
        self.looks: list[tuple[float, int]] = []  # when, from how many
        self.news: list[Behaviour] = []
        self.own = ("192.168.1.2",)
        self.cancelled = 0
        scene = self

        class Probe:
            def __init__(self, transport: str, *args: Any, **more: Any) -> None:
                self.transport = transport

            async def run(self, vantages: Sequence[Vantage]) -> AsyncIterator[Behaviour]:
                scene.looks.append((now(), len(vantages)))
                try:
                    for behaviour in scene.says:
                        await asyncio.sleep(scene.took)
                        yield behaviour
                except asyncio.CancelledError:
                    scene.cancelled += 1
                    raise

        monkeypatch.setattr(look, "NatProbe", Probe)
        anything: Any = None
        self.looking = Looking(
            make=lambda transport: anything,
            asker=anything,
            own_peer=ALICE.peer_id,
            own_ips=lambda: self.own,
            timeouts=Timeouts(),
            is_public=lambda addr: True,
            on_news=lambda behaviour, before: self.news.append(behaviour),
            on_done=lambda: None,
            lifetime=lifetime,
            clock=now,
        )

    async def after(self, seconds: float, *vantages: Vantage, seen_at: Sequence[str] = ()) -> int:
        """How many looks there were, `seconds` later and with these vantage points."""
        await asyncio.sleep(seconds)
        self.looking.consider("udp", vantages, seen_at)
        await asyncio.sleep(0)
        return len(self.looks)


def on_virtual_time(test: Callable[[pytest.MonkeyPatch], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    def run(monkeypatch: pytest.MonkeyPatch) -> None:
        simulated(test)(monkeypatch)

    run.__name__ = test.__name__
    return run


@on_virtual_time
async def test_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    assert await scene.after(0) == 0
    assert scene.looking.next_due() is None


@on_virtual_time
async def test_a_second_vantage_point_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    assert await scene.after(0, vantage(0)) == 0
    assert scene.looking.next_due() == SECOND
    assert await scene.after(SECOND / 2, vantage(0), vantage(1)) == 1
    assert scene.looks == [(SECOND / 2, 2)]
    await scene.looking.close()


@on_virtual_time
async def test_one_is_better_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    await scene.after(0, vantage(0))
    assert await scene.after(SECOND, vantage(0)) == 1
    assert scene.looks[0][1] == 1
    await scene.looking.close()


@on_virtual_time
async def test_a_look_from_one_gives_way_to_one_from_two(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, took=30)
    await scene.after(0, vantage(0))
    assert await scene.after(SECOND, vantage(0)) == 1
    assert await scene.after(1, vantage(0), vantage(1)) == 2
    assert await scene.after(1, vantage(0), vantage(1), vantage(2)) == 2, "two are enough"
    assert scene.cancelled == 1
    assert scene.looking.running("udp")
    await scene.after(40)
    assert scene.news == [WHOLE]
    assert not scene.looking.running("udp")


@on_virtual_time
async def test_what_is_known_is_checked_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    both = vantage(0), vantage(1)
    await scene.after(0, *both)
    assert await scene.after(RECHECK - 1, *both) == 1
    assert scene.looking.next_due() == RECHECK
    assert await scene.after(1, *both) == 2
    assert await scene.after(5, *both, vantage(2), vantage(3)) == 2, "others are no reason"
    assert scene.news == [WHOLE], "the same is no news"


@on_virtual_time
async def test_what_was_left_open_is_tried_again_and_more_and_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, Behaviour("udp", external="11.0.0.1"))
    both = vantage(0), vantage(1)
    await scene.after(0, *both)
    for _ in range(7):
        await asyncio.sleep(2)  # it is over
        due = scene.looking.next_due()
        assert due is not None
        await scene.after(max(0.0, due - now() - 0.5), *both)
        before = len(scene.looks)
        assert await scene.after(0.5, *both) == before + 1
    await scene.looking.close()
    gaps = [b - a for (a, _), (b, _) in zip(scene.looks, scene.looks[1:], strict=False)]
    assert gaps == [RETRY, 2 * RETRY, 4 * RETRY, 8 * RETRY, 16 * RETRY, RECHECK, RECHECK]


@on_virtual_time
async def test_another_network_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    both = vantage(0), vantage(1)
    await scene.after(0, *both)
    assert await scene.after(5, *both) == 1
    scene.own = ("10.0.0.7",)
    assert await scene.after(0, *both) == 2
    await scene.looking.close()


@on_virtual_time
async def test_another_outside_address_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    both = vantage(0), vantage(1)
    await scene.after(0, *both)
    assert await scene.after(RETRY - 1, *both, seen_at=["12.0.0.1"]) == 1, "not for every whim"
    assert await scene.after(1, *both, seen_at=["12.0.0.1", "11.0.0.1"]) == 1
    assert await scene.after(0, *both, seen_at=["12.0.0.1"]) == 2
    await scene.looking.close()


@on_virtual_time
async def test_the_words_of_those_who_were_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = vantage(0), vantage(1, trusted=False)
    kept = Behaviour(
        "udp",
        Mapping.ENDPOINT_INDEPENDENT,
        Filtering.ADDRESS_AND_PORT_DEPENDENT,
        filtered=(one.peer, two.peer),
        kept_out=(one.peer,),
    )
    scene = Scene(monkeypatch, kept)
    assert scene.looking.words("udp") == ()
    assert not scene.looking.filters_ports("udp")
    await scene.after(0, one, two)
    await asyncio.sleep(2)
    words = scene.looking.words("udp")
    assert [(word.server, word.network, word.trusted) for word in words] == [
        (one.peer, "21.0", True),
        (two.peer, "22.0", False),
    ]
    assert all(word.inferred and not word.reachable and word.at == 0 for word in words)
    assert scene.looking.filters_ports("udp")


@pytest.mark.parametrize("filtering", [Filtering.ENDPOINT_INDEPENDENT, Filtering.UNKNOWN])
def test_an_open_nat_is_held_against_nobody(filtering: Filtering, monkeypatch: pytest.MonkeyPatch) -> None:
    @simulated
    async def run() -> None:
        found = Behaviour("udp", Mapping.ENDPOINT_INDEPENDENT, filtering, filtered=(SERVERS[0].peer_id,))
        scene = Scene(monkeypatch, found)
        await scene.after(0, vantage(0), vantage(1))
        await asyncio.sleep(2)
        assert scene.looking.words("udp") == ()
        assert not scene.looking.filters_ports("udp")

    run()


@on_virtual_time
async def test_a_stranger_alone_does_not_make_ports_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its lie would make an address-restricted NAT's let-ins proof."""
    stranger = vantage(0, trusted=False)
    kept = Behaviour("udp", filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT, kept_out=(stranger.peer,))
    scene = Scene(monkeypatch, kept)
    await scene.after(0, stranger, vantage(1))
    await asyncio.sleep(2)
    assert not scene.looking.filters_ports("udp")


@on_virtual_time
async def test_two_strangers_of_different_networks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    strangers = vantage(0, trusted=False), vantage(1, trusted=False)
    kept = Behaviour(
        "udp",
        filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
        kept_out=tuple(stranger.peer for stranger in strangers),
    )
    scene = Scene(monkeypatch, kept)
    await scene.after(0, *strangers)
    await asyncio.sleep(2)
    assert scene.looking.filters_ports("udp")


class Measuring:
    """Stands for a LifetimeProbe."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def __call__(self, vantage: Vantage) -> Any:
        return self

    async def run(self, behaviour: Behaviour) -> Lifetime:
        self.began.append(now())
        await asyncio.sleep(30)
        return Lifetime(15, None, 0.5)


@on_virtual_time
async def test_the_lifetime_comes_later_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = Measuring()
    scene = Scene(monkeypatch, WHOLE, WHOLE, lifetime=measuring)
    both = vantage(0), vantage(1)
    await scene.after(0, *both)
    await asyncio.sleep(40)
    assert measuring.began == [1 + MEASURE], "not before the first verdict"
    assert [behaviour.lifetime for behaviour in scene.news] == [None, Lifetime(15, None, 0.5)]
    await scene.after(RECHECK, *both)
    await asyncio.sleep(40)
    assert len(scene.looks) == 2
    assert len(measuring.began) == 1
    assert scene.looking.behaviours["udp"].lifetime is not None, "a look does not forget it"


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour("udp", blocked=True),
        Behaviour("udp", Mapping.NONE, Filtering.ENDPOINT_INDEPENDENT, external="11.0.0.1"),
        Behaviour("tcp", Mapping.ENDPOINT_INDEPENDENT, external="11.0.0.1"),
    ],
)
def test_where_there_is_nothing_to_measure(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    @simulated
    async def run() -> None:
        measuring = Measuring()
        scene = Scene(monkeypatch, behaviour, lifetime=measuring)
        scene.looking.consider(behaviour.transport, [vantage(0), vantage(1)])
        await asyncio.sleep(60)
        assert measuring.began == []

    run()


@on_virtual_time
async def test_nothing_is_due_once_the_vantage_points_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whoever waits until it is would not wait."""
    scene = Scene(monkeypatch)
    await scene.after(0, vantage(0))
    assert scene.looking.next_due() == SECOND
    await scene.after(0)
    assert scene.looking.next_due() is None
