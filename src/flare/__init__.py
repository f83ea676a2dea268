"""flare: NAT traversal for Python.

Relays introduce peers, hole punching gets them direct, over libp2p's own protocols.
"""

from .auto_nat import AutoNat
from .auto_relay import AutoRelay
from .config import (
    AutoRelayConfig,
    Config,
    HostLimits,
    MuxLimits,
    PortMappingConfig,
    PunchConfig,
    Rate,
    RelayLimits,
    StatusLimits,
    Timeouts,
)
from .errors import (
    ConnectionClosed,
    DialFailed,
    FlareError,
    LimitedConnection,
    NetworkError,
    ProtocolNotSupported,
    ProtocolViolation,
    PunchFailed,
    RelayRefused,
    StreamClosed,
    StreamReset,
    TimedOut,
    UsageError,
)
from .host import Host
from .nat.punch import HolePuncher
from .port_mapper import PortMapper
from .protocols.relay.access import AccessList, PeerList
from .relay_server import RelayServer
from .transport.connection import Connection
from .transport.stream import Stream
from .version import __version__
from .watch.server import StatusServer
from .wire.keys import Identity
from .wire.multiaddr import Multiaddr
from .wire.peer_id import PeerId

__all__ = [
    "AccessList",
    "AutoNat",
    "AutoRelay",
    "AutoRelayConfig",
    "Config",
    "Connection",
    "ConnectionClosed",
    "DialFailed",
    "FlareError",
    "HolePuncher",
    "Host",
    "HostLimits",
    "Identity",
    "LimitedConnection",
    "Multiaddr",
    "MuxLimits",
    "NetworkError",
    "PeerId",
    "PeerList",
    "PortMapper",
    "PortMappingConfig",
    "ProtocolNotSupported",
    "ProtocolViolation",
    "PunchConfig",
    "PunchFailed",
    "Rate",
    "RelayLimits",
    "RelayRefused",
    "RelayServer",
    "StatusLimits",
    "StatusServer",
    "Stream",
    "StreamClosed",
    "StreamReset",
    "TimedOut",
    "Timeouts",
    "UsageError",
    "__version__",
]
