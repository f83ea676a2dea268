from typing import Final

ROUTED: Final = 0
INITIAL: Final = 1
VERSION: Final = 2
STRAY: Final = 3
RESET: Final = 4
RAW: Final = 5

CID: Final = 8

Address = tuple[str, int] | tuple[str, int, str]
"""Host and port of a peer; a third item is our address that it sent to, from which answers leave."""

Datagram = tuple[int, object, bytes, Address]

def address(host: str, port: int) -> tuple[str, int]:
    """(host, port) as `Datagrams.receive` would name it. UsageError for what is no IP address."""

class Datagrams:
    """The datagrams of one non-blocking UDP socket, in batches. The socket stays the caller's."""

    def __init__(self, fd: int, *, gro: bool = True, gso: bool = True) -> None:
        """`gro`, `gso`: let the kernel join and split datagrams, where it can."""

    fd: Final[int]
    gro: Final[bool]
    @property
    def gso(self) -> bool: ...

    routes: Final[dict[bytes, object]]
    """Whose the connection ids of CID bytes are."""
    tokens: Final[dict[bytes, object]]
    """Whose peers' stateless reset tokens of 16 bytes are."""
    expected: Final[dict[str, object]]
    """Hosts whose datagrams that are no QUIC for us are wanted, RAW, and by whom."""
    received: Final[int]
    dropped: Final[int]
    sent: Final[int]
    unsendable: Final[int]

    def receive(self, unsolicited: int = 64) -> list[Datagram] | None:
        """One batch as (kind, owner, data, from); None when there is nothing. OSError.

        On a socket that is bound to a wildcard, `from` says which address of ours it came to.

        ROUTED has a connection id in `routes`, RESET ends in a token of `tokens`, RAW comes from an
        `expected` host: these have an owner. INITIAL may start a connection, VERSION does so in an unknown
        version, STRAY has the form of a packet of a connection: of these and RAW, at most `unsolicited` of a
        batch are reported, the others are dropped as what is none of all is.
        """
    def send(self, datagrams: list[tuple[bytes, Address]], first: int = 0) -> int:
        """Send from `first` on; returns the index of the first that the socket has no room for now.

        One that cannot be sent (no route, too large) is passed over and counted in `unsendable`. UsageError
        for a host that is no IP address.
        """
