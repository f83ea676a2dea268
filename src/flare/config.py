"""Every limit and timeout, its default, and what it defends.

Times are seconds, sizes bytes; 0 means no limit where that is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from flare.errors import UsageError

KIB = 1024
MIB = 1024 * KIB

Security = Literal["tls", "noise"]
SECURITY: Final[tuple[Security, ...]] = ("tls", "noise")  # as go-libp2p prefers them


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one step with a peer may take."""

    resolve: float = 5.0  # a name, by DNS
    dial: float = 15.0  # one address, from SYN to a secured and multiplexed connection
    handshake: float = (
        10.0  # an inbound connection, from accept to multiplexed: defends against half-open floods
    )
    negotiate: float = 10.0  # multistream-select on a stream
    identify: float = 10.0  # identify, either role
    ping: float = 10.0  # one pong
    ping_idle: float = 60.0  # a peer's ping stream without a ping: defends against streams held for nothing
    perf_idle: float = 30.0  # a perf stream on which nothing moves
    relay_message: float = 10.0  # one HOP or STOP message
    relay_connect: float = (
        30.0  # HOP CONNECT, from the request to the relay's STATUS: it asks the target meanwhile
    )
    relay_drain: float = 25.0  # circuits that run when a relay is to end: less than what Kubernetes waits
    dcutr_message: float = 10.0  # one DCUtR message
    autonat: float = 30.0  # a dial-back request, either role (v1 waits out its dial even when it failed)
    dial_back: float = 6.0  # the dial of an AutoNAT server: rust-libp2p's client waits 10 for all of it
    dial_back_message: float = 5.0  # the nonce, or its answer
    hairpin: float = 2.0  # a dial to our own outside address
    punch: float = 5.0  # one hole-punch attempt, after its SYNC
    close: float = 5.0  # a graceful close before it becomes a reset
    status: float = 5.0  # each step of a request to the status server: reading it, its answer, sending that
    linger: float = 120.0  # a stream closed here whose peer has not closed its side, before it is reset


@dataclass(frozen=True, slots=True)
class MuxLimits:
    """What one multiplexed connection may cost (yamux)."""

    initial_window: int = 256 * KIB  # fixed by yamux
    max_window: int = 16 * MIB  # a stream's window doubles up to here while the peer keeps it full
    max_receive: int = 64 * MIB  # all windows of one connection together: defends memory
    # What waits to be read on all connections of the process. One that has more waiting than is left for all,
    # and more than a first window, is ended: defends memory against circuits that nobody reads. 0: no limit
    max_receive_all: int = 512 * MIB
    max_growth_all: int = (
        256 * MIB
    )  # by which all windows grow; each connection gets a quarter of what is left
    max_streams: int = 1024  # inbound streams at once
    backlog: int = 256  # inbound streams opened and not yet negotiated, and our own not yet acknowledged
    send_high_water: int = 1 * MIB  # a link with this much unsent takes no more
    keepalive: float = 30.0  # yamux ping on an idle connection; 0: none
    keepalive_timeout: float = 10.0  # unanswered: the connection is dead
    linger: float = 5.0  # after go-away, how long the peer may take to close its side


@dataclass(frozen=True, slots=True)
class QuicLimits:
    """What one QUIC connection may cost, and when strangers must prove their address."""

    stream_window: int = 512 * KIB  # of a new stream; doubles while the peer keeps it full
    max_stream_window: int = 10 * MIB
    connection_window: int = 768 * KIB  # all streams of a connection together, likewise
    max_connection_window: int = 15 * MIB  # defends memory: what a peer may send and nobody reads
    max_streams: int = 256  # inbound streams at once
    backlog: int = 256  # our own streams that wait until the peer allows them
    send_high_water: int = 1 * MIB  # a connection with this much unsent takes no more
    idle_timeout: float = 30.0  # nothing came for so long: the connection is dead
    keepalive: float = 15.0  # a ping when nothing came for so long, so that NATs keep their mapping
    drain: float = 1.0  # a close waits for what was written while the peer is heard from so often
    datagram_size: int = 1200  # bytes of UDP payload that every path must carry (RFC 9000, 14)
    max_datagram_size: int = (
        1452  # the most that is probed for (RFC 8899), as go-libp2p's: Ethernet over IPv6
    )
    max_unproved: int = 32  # half-open inbound connections from addresses that are not proved; past it: Retry
    resets_per_second: int = (
        100  # stateless resets, version negotiations: answers to those we know nothing of
    )


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_second` in the long run, `burst` at once. `per_second` 0: no limit.

    A burst of 0 is what comes in a second, and 1 at least; of bytes, in a quarter of one and 64 KiB at least.
    """

    per_second: float = 0.0
    burst: float = 0.0


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay gives (circuit-v2.md, "Reservation"); where go-libp2p has a limit, its default is used.

    "per_ip" is for each IPv4 and IPv6 prefix of the length below. A circuit counts against both its ends, and
    its bytes against both, in both directions together; a request counts against who asks. `byte_rate`
    without an end is the whole relay's.
    """

    reservation_ttl: float = 3600.0  # how long a reservation lasts unless refreshed
    max_reservations: int = 128
    max_reservations_per_ip: int = 8
    max_reservations_per_peer: int = 1  # a second RESERVE refreshes the first
    reservation_rate_per_peer: Rate = Rate(0.2, 10)  # RESERVEs, refreshes too: defends CPU (a signature each)
    reservation_rate_per_ip: Rate = Rate(2.0, 60)
    max_circuits: int = 1024  # in all, at once; 0: no limit
    max_circuits_per_peer: int = 16
    max_circuits_per_ip: int = 128  # 0: no limit
    circuit_rate_per_peer: Rate = Rate(2.0, 60)  # CONNECTs, refused ones too: defends those who are called
    circuit_rate_per_ip: Rate = Rate(8.0, 240)
    circuit_bytes: int = 128 * KIB  # in each direction; 0: no limit
    circuit_duration: float = 120.0  # 0: no limit
    byte_rate_per_peer: Rate = Rate()
    byte_rate_per_ip: Rate = Rate()
    byte_rate: Rate = Rate()
    ipv4_prefix: int = 32  # bits
    ipv6_prefix: int = 64  # which one host may own
    max_buckets: int = 65_536  # peers, and prefixes, that a rate remembers: defends memory

    @classmethod
    def unlimited(cls) -> RelayLimits:
        """No limit on what circuits carry, no rates, and room for many: for a relay among friends."""
        return cls(
            max_reservations=1 << 20,
            max_reservations_per_ip=1 << 20,
            reservation_rate_per_peer=Rate(),
            reservation_rate_per_ip=Rate(),
            max_circuits=0,
            max_circuits_per_peer=1 << 20,
            max_circuits_per_ip=0,
            circuit_rate_per_peer=Rate(),
            circuit_rate_per_ip=Rate(),
            circuit_bytes=0,
            circuit_duration=0.0,
        )


@dataclass(frozen=True, slots=True)
class ReservationConfig:
    """How a client keeps its reservations."""

    refresh_before: float = 120.0  # refresh at the latest this long before a reservation ends, and
    refresh_share: float = 0.75  # ... when this much of its lifetime is over
    refresh_at_most: float = 1800.0  # and never later than this, since the relay's clock may be ahead of ours
    refresh_at_least: float = 15.0  # but not sooner, whatever the relay's clock says: defends the relay
    jitter: float = (
        0.1  # this share of each wait is left to chance, so that a relay's clients do not come at once
    )
    # A wait is drawn from all between these two, of which the second doubles: a relay that 1,000 clients lost
    # in one moment gets 200 of them a second and not all at once (benchmarks/herd.py)
    backoff_least: float = 0.1
    backoff_first: float = 5.0
    backoff_restart: float = 12.0  # up to here for as long as a restart may take,
    restart: float = 300.0  # ... which is this; so all are back within 30 s of the relay
    backoff_max: float = 60.0  # and then up to here
    backoff_refused: float = 300.0  # or here when a relay refuses us
    steady: float = 60.0  # a reservation that held this long forgets earlier failures
    hurry: float = 0.5  # a wait is at most this once our own network came back


@dataclass(frozen=True, slots=True)
class AutoRelayConfig:
    """How relays are found, chosen and left (flare.nat.relay_choice)."""

    wanted: int = 2  # reservations held
    enough: int = 4  # candidates that could be tried now: with fewer, sources are asked
    max_candidates: int = 64  # that are remembered: defends memory against sources that tell many
    max_addrs: int = 8  # of one candidate
    forget: float = 1800.0  # a candidate that no source told of for so long, and that is not held
    ask_every: float = 30.0  # between two rounds of questions to the sources; doubles when nothing is new
    ask_max: float = 1800.0
    ask_timeout: float = 15.0  # for one source
    probes: int = 4  # candidates dialled at once to learn their latency, when there is a choice
    probe_timeout: float = 5.0  # dial and ping
    probe_fresh: float = 600.0  # a measured latency is believed for so long
    try_patience: float = 5.0  # a candidate that has not answered by then is not waited for alone
    # After the loss of a relay another is looked for at a moment within `spread`, so that its clients do not
    # all fall upon one other relay; `patience` later when another reservation is still held
    spread: float = 5.0
    patience: float = 5.0
    rest_first: float = 30.0  # how long a candidate that failed is left alone; doubles
    rest_refused: float = 300.0  # or that refused us
    rest_max: float = 3600.0  # or that is no relay
    ping_every: float = 15.0
    ping_timeout: float = 5.0
    ping_failures: int = 2  # in a row: the relay is dead
    smoothing: float = 0.25  # the weight of a new measurement of latency
    slow_factor: float = 2.0  # a relay is slow when another's latency is so many times less,
    slow_margin: float = 0.1  # ... and it is better by so many seconds,
    slow_for: float = 60.0  # ... for so long without a break
    settle: float = 300.0  # between two moves because of latency


@dataclass(frozen=True, slots=True)
class PortMappingConfig:
    """How ports are mapped on the router, and what one that is slow, gone or lying may cost.

    All of it happens beside everything else: nothing here delays a host.
    """

    lifetime: float = 7200.0  # asked for: what a crash leaves behind ends by then (RFC 6886, 3.3)
    patience: float = 8.0  # one protocol's probe, when nobody answers
    preference: float = 0.3  # once one protocol has answered, how long a better one may take
    request: float = 5.0  # one question to a router that speaks the protocol
    verify: float = 300.0  # so often a mapping is looked at: notices a router that restarted in silence
    renew_at_least: float = 4.0  # half a lifetime is never less (RFC 6887, 11.2.1): defends the router
    renew_at_most: float = 43_200.0  # nor more, whatever the router promised: it may not keep it
    jitter: float = 0.1  # this share of each wait is left to chance
    retry: float = 4.0  # after a question without an answer; doubles
    tries: int = 3  # unanswered in a row: the mapping counts as lost
    steady: float = 60.0  # a mapping that held this long forgets earlier failures
    backoff_first: float = 15.0  # after a router that maps nothing; doubles
    backoff_max: float = 1800.0
    hush: float = 10.0  # news from the router is acted on no more often: defends it from forged news
    look: float = 15.0  # so often the way out is looked at: another network, another router
    farewell: float = 2.0  # what giving mappings back may delay a host's end
    max_listeners: int = 16  # mapped on one router: defends its table
    other_ports: int = 8  # ports tried by chance when the wanted one is taken (UPnP)

    def __post_init__(self) -> None:
        if not 1 <= self.lifetime <= 604_800:
            raise UsageError(f"a mapping for {self.lifetime:g} s: routers give from 1 s to a week")


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What strangers may cost a host as a whole. "per_ip" is for each IPv4 address and each IPv6 /64."""

    max_connections: int = 100_000  # and never more than the process has descriptors for
    max_connections_per_ip: int = 256  # inbound: defends everybody else's places
    # inbound, at once: defends memory against half-open floods. When all are taken the oldest gives way
    max_handshakes: int = 2048
    max_handshakes_per_ip: int = 64
    handshakes_per_second_per_ip: float = 10.0  # after a burst: defends CPU; 0: no limit
    handshake_burst_per_ip: int = 128
    exempt: tuple[str, ...] = ("127.0.0.0/8", "::1/128")  # networks without any limit per IP


@dataclass(frozen=True, slots=True)
class StatusLimits:
    """What the status server may cost, and when /healthz calls a relay sick."""

    max_connections: int = 32  # at once; further ones are hung up on
    max_request: int = 8 * KIB  # the request line and all header fields
    rows: int = 20  # of each list on the page
    max_lag: float = 1.0  # seconds that the event loop came late by in the last ten: more is not healthy


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one HTTP request of ours may cost: whoever answers may be hostile."""

    timeout: float = 10.0  # all of it, redirects too
    connect: float = 4.0  # to one address, before the next is tried
    max_head: int = 16 * KIB  # the header fields; those of chunks and trailers are counted with them
    max_body: int = 1 * MIB
    max_redirects: int = 3  # of a GET


@dataclass(frozen=True, slots=True)
class PunchConfig:
    """Hole punching (DCUtR.md)."""

    attempts: int = 3
    grace: float = 5.0  # the relayed connection lives this long after the direct one is up
    max_targets: int = (
        16  # addresses of a peer tried at once: defends others against a peer that lists theirs
    )
    max_ips: int = 4  # IPs of a peer whose other ports may be its too: defends others who dial from there
    max_active: int = 64  # peers punched at once: defends threads and descriptors
    reversal: float = 5.0  # the plain dial of a peer that has public addresses
    head_start: float = 0.5  # of that dial before the first attempt: enough where the peer really is public
    # The search for ports that a NAT gives by chance (flare.nat.birthday; 16 bytes a datagram). A peer names
    # the IP that is searched, and nobody confirms that it is its own: defends whose it is
    probes: int = 512  # to random ports of one IP in a punch: no more datagrams than a punch of 16 addresses
    probes_per_ip: int = 2048  # in a minute, whoever asked for them
    # a second, all searches of the host together, 0: no searches. Defends our own NAT's table too
    probe_rate: float = 600.0
    sockets: int = 256  # opened at once by the side with such a NAT; 0: never. Defends descriptors,
    max_sockets: int = 512  # ... of all searches of the host together
    socket_rounds: int = 4  # times that many, one after the other


@dataclass(frozen=True, slots=True)
class Config:
    """All of it, handed to a Host.

    `data_threads` is how many threads move bytes, beside Python and without its lock: connections and
    circuits are spread over them. 0: the event loop's thread does it, which costs an endpoint least.
    """

    timeouts: Timeouts = field(default_factory=Timeouts)
    mux: MuxLimits = field(default_factory=MuxLimits)
    quic: QuicLimits = field(default_factory=QuicLimits)
    host: HostLimits = field(default_factory=HostLimits)
    punch: PunchConfig = field(default_factory=PunchConfig)
    reservation: ReservationConfig = field(default_factory=ReservationConfig)
    port_mapping: PortMappingConfig = field(default_factory=PortMappingConfig)
    auto_relay: AutoRelayConfig = field(default_factory=AutoRelayConfig)
    data_threads: int = 0
    security: tuple[Security, ...] = (
        SECURITY  # of TCP and circuits: dials propose in this order, others are refused
    )

    def __post_init__(self) -> None:
        if not self.security or set(self.security) - set(SECURITY):
            raise UsageError(f"security {self.security!r}: choose from {', '.join(SECURITY)}")
