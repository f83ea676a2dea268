"""What a peer does in a test, by role and not by implementation: relay, listen, ping, echo, perf."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.interop.peer import Event, Peer, PeerFailed

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
LOOPBACK_QUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
LISTEN = {"TCP": LOOPBACK, "QUIC": LOOPBACK_QUIC}

# flare's own program over its Python API, for what the command does not do (serving an echo).
EMBEDDED = (sys.executable, str(Path(__file__).parent / "flare_peer.py"))


@contextmanager
def relay(kind: str, *, limits: bool = False, listen: str = LOOPBACK, security: str = "") -> Iterator[str]:
    """The address of a relay that runs on loopback meanwhile; `security` is tls or noise alone."""
    with Peer(*_relay(kind, limits), "--listen", listen, *_secured(security)) as peer:
        yield _first(peer, peer.expect("listening"))


@contextmanager
def relay_of_both(kind: str) -> Iterator[dict[str, str]]:
    """The addresses of a relay on loopback by transport, "TCP" and "QUIC"."""
    with Peer(*_relay(kind, False), "--listen", LOOPBACK_QUIC, "--listen", LOOPBACK) as peer:
        addrs = peer.expect("listening")["addrs"]
        yield {
            "QUIC": next(addr for addr in addrs if "/quic-v1/" in addr),
            "TCP": next(addr for addr in addrs if "/tcp/" in addr),
        }


def _relay(kind: str, limits: bool) -> list[str]:
    if kind == "flare":
        return [kind, "relay", "--json", *([] if limits else ["--no-limits"])]
    return [kind, "relay", "--limits" if limits else "--no-limits"]


@contextmanager
def listener(
    kind: str,
    *,
    through: str | None = None,
    key: str | None = None,
    listen: str = LOOPBACK,
    security: str = "",
    more: Sequence[str] = (),
) -> Iterator[str]:
    """The address of a peer that serves ping, identify and echo: its own, or the one through a relay."""
    arguments = ["listen", "--listen", listen, *_secured(security), *more]
    arguments += ["--relay", through] if through else []
    arguments += ["--key", key] if key else []
    with Peer(kind, *arguments, command=EMBEDDED if kind == "flare" else None) as peer:
        direct = _first(peer, peer.expect("listening"))
        if through is None:
            yield direct
            return
        reserved = peer.expect("reserved")
        if not through.endswith(f"/p2p/{reserved['relay']}"):
            raise PeerFailed(f"{peer.name}: reserved on {reserved['relay']}, not on {through}")
        yield _first(peer, reserved)


def ping(
    kind: str, target: str, *, count: int = 3, key: str | None = None, security: str = ""
) -> list[Event]:
    """The pongs of one pinger that ended well."""
    return session(kind, target, count=count, key=key, security=security).named("pong")


def identify(kind: str, target: str, *, security: str = "") -> Event:
    """What a peer of `kind` learns of `target` by identify: its agent and protocols."""
    (identified,) = session(kind, target, security=security).named("identified")
    return identified


def session(
    kind: str,
    target: str,
    *,
    count: int = 1,
    echoes: Sequence[int] = (),
    key: str | None = None,
    security: str = "",
    more: Sequence[str] = (),
) -> Peer:
    """A pinger that ended well, with all its events; after the pings it echoes, each size in its turn."""
    arguments = ["ping", target, "--count", str(count), "--timeout", "30", *_secured(security), *more]
    arguments += ["--echo", ",".join(map(str, echoes))] if echoes else []
    arguments += ["--key", key] if key else []
    with Peer(kind, *arguments, command=EMBEDDED if kind == "flare" else None) as peer:
        peer.finish(40)
    if not peer.named("done"):
        raise PeerFailed(f"{peer.name}: ended without a done event: {json.dumps(peer.events)}")
    echoed = [event["bytes"] for event in peer.named("echoed")]
    if echoed != list(echoes):
        raise PeerFailed(f"{peer.name}: echoed {echoed}, not {list(echoes)}")
    return peer


def paths(told: Peer) -> set[str]:
    """How the pings and echoes of a session ran."""
    return {event["path"] for event in (*told.named("pong"), *told.named("echoed"))}


def echo(kind: str, target: str, size: int, *, security: str = "", more: Sequence[str] = ()) -> Event:
    """`size` bytes there and back, compared by the peer; its echoed event."""
    command = EMBEDDED if kind == "flare" else None
    arguments = ["echo", target, "--bytes", str(size), "--timeout", "30", *_secured(security), *more]
    with Peer(kind, *arguments, command=command) as peer:
        peer.finish(40)
    (echoed,) = peer.named("echoed")
    return echoed


def perf(kind: str, target: str, upload: int, download: int, *, more: Sequence[str] = ()) -> Event:
    """`upload` bytes there, `download` bytes back, counted by the peer; its perf event."""
    arguments = ["perf", target, "--upload", str(upload), "--download", str(download), "--timeout", "60"]
    arguments += more
    with Peer(kind, *arguments, command=EMBEDDED if kind == "flare" else None) as peer:
        peer.finish(70)
    (measured,) = peer.named("perf")
    return measured


def _secured(security: str) -> list[str]:
    return ["--security", security] if security else []


def _first(peer: Peer, event: Event) -> str:
    if not event.get("addrs"):
        raise PeerFailed(f"{peer.name}: a {event['event']} event without addresses")
    return str(event["addrs"][0])
