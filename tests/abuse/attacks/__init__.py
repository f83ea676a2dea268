"""The attacks by name. Each gets the relay's address and a Counter to tell what it did, and goes on until it
is cancelled; its rate stands in its docstring, and is what the attackers' core can make besides the rest."""

from collections import Counter
from collections.abc import Awaitable, Callable

from flare.wire.multiaddr import Multiaddr
from tests.abuse.attacks import circuits, datagrams, doors, frames, protocols

Attack = Callable[[Multiaddr, "Counter[str]"], Awaitable[None]]

ATTACKS: dict[str, Attack] = {
    attack.__name__.replace("_", "-"): attack
    for module in (doors, frames, protocols, circuits, datagrams)
    for attack in module.ATTACKS
}
