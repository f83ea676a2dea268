"""When the NAT is looked at, without looking."""

from __future__ import annotations

from typing import Any

from flare.nat.look import SECOND, Looking
from flare.nat.vantage import Vantage
from flare.protocols.exchange import TIMEOUTS
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr


def test_nothing_is_due_once_the_vantage_points_have_gone() -> None:
    """Or whoever waits until it is would not wait."""
    nobody: Any = None
    peer = Identity.generate().peer_id
    looking = Looking(
        make=nobody,
        asker=nobody,
        own_peer=peer,
        own_ips=lambda: (),
        timeouts=TIMEOUTS,
        is_public=lambda addr: True,
        on_news=lambda now, before: None,
        on_done=lambda: None,
        clock=lambda: 100.0,
    )
    vantage = Vantage(peer, (Multiaddr("/ip4/1.2.3.4/tcp/4001"),), nobody)
    assert looking.next_due() is None
    looking.consider("tcp", [vantage])
    assert looking.next_due() == 100.0 + SECOND
    looking.consider("tcp", [])
    assert looking.next_due() is None
