"""Relays that a delegated routing service knows, over HTTP (Delegated Routing V1 HTTP API).

The API has no question "who relays?". What is specified and leads to relays:

    https://HOST                            the peers closest to a random key: a walk through a DHT, whose
                                            servers relay as a rule (/routing/v1/dht/closest/peers/KEY)
    https://HOST/routing/v1/providers/CID   who provides a CID that relays of one's own network agreed upon
    https://HOST/routing/v1/peers/PEER      where one relay is now whose id is known

Records say which data transfer a peer speaks, not whether it relays: that shows when it is asked for a place.
"""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from flare.config import HttpLimits
from flare.errors import DecodeError, NetworkError, UsageError
from flare.nat.relay_sources import FoundRelay, told_by_strangers
from flare.transport import http_client
from flare.wire.multiaddr import Multiaddr
from flare.wire.multiaddr import is_public as addr_is_public
from flare.wire.multibase import multibase_encode
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.dns import Resolver

CLOSEST: Final = "/routing/v1/dht/closest/peers/"
MAX_RECORDS: Final = 100  # of one answer: what the specification lets a server send without streaming
MAX_ADDRS: Final = 32  # of one record that are looked at
MAX_ADDR: Final = 512  # characters of one
PROTOCOL: Final = "routing"
_RAW_SHA256: Final = b"\x01\x55\x12\x20"  # CIDv1, raw, sha2-256


class RoutingRelays:
    """`url` is a service, or one of its resources as above. UsageError for what is no http or https URL."""

    trusted: Final = False

    def __init__(
        self,
        url: str,
        *,
        is_public: Callable[[Multiaddr], bool] = addr_is_public,
        limits: HttpLimits | None = None,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = http_client.parse_url(url)
        if parts.fragment:
            raise UsageError(f"{url}: a fragment means nothing to a routing service")
        self._url = url
        self._walks = parts.path in ("", "/") and not parts.query
        self._is_public = is_public
        self._limits = limits
        self._resolver = resolver
        self._tls = tls

    @property
    def name(self) -> str:
        """The URL."""
        return self._url

    async def find(self) -> Sequence[FoundRelay]:
        """The peers that it tells of, with public addresses. NetworkError, TimedOut, DecodeError."""
        url = self._url.rstrip("/") + CLOSEST + random_key() if self._walks else self._url
        answer = await http_client.request(
            url,
            headers=[("Accept", "application/json")],
            limits=self._limits,
            resolver=self._resolver,
            tls=self._tls,
        )
        if answer.status == 404:
            return []  # nobody is known
        if answer.status != 200:
            raise NetworkError(f"{url} answers with status {answer.status}")
        found = []
        for record in decode_records(answer.body):
            addrs = told_by_strangers(record.peer, record.addrs, self._is_public)
            if addrs:
                found.append(FoundRelay(record.peer, addrs))
        return found


def random_key() -> str:
    """A key somewhere in the DHT: a multihash in a CIDv1, base32."""
    return multibase_encode("b", _RAW_SHA256 + secrets.token_bytes(32))


def decode_records(body: bytes) -> list[FoundRelay]:
    """The peers of an answer, JSON or one record a line; each once, at most MAX_RECORDS.

    Records and addresses that are none are left out. DecodeError when the whole is no answer.
    """
    records = _records(body)
    found: dict[PeerId, FoundRelay] = {}
    for record in records[:MAX_RECORDS]:
        peer = _peer(record)
        if peer is not None:
            found.setdefault(peer, FoundRelay(peer, tuple(_addrs(record))))
    return list(found.values())


def _records(body: bytes) -> list[Any]:
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        whole = None
        lines = [line for line in body.split(b"\n", MAX_RECORDS)[:MAX_RECORDS] if line.strip()]
        try:
            records = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"no JSON: {error}", protocol=PROTOCOL) from None
        if records:
            return records
    if isinstance(whole, dict):
        for name in ("Peers", "Providers"):
            listed = whole.get(name)
            if isinstance(listed, list):
                return listed
        if "ID" in whole:  # one line of a stream
            return [whole]
        if any(name in whole for name in ("Peers", "Providers")):
            return []  # null, as some servers say for nobody
    raise DecodeError("an answer without Peers or Providers", protocol=PROTOCOL)


def _peer(record: Any) -> PeerId | None:
    if not isinstance(record, dict):
        return None
    text = record.get("ID")
    if not isinstance(text, str) or len(text) > MAX_ADDR:
        return None
    try:
        return PeerId(text)
    except UsageError:
        return None


def _addrs(record: Any) -> Iterable[Multiaddr]:
    listed = record.get("Addrs")
    if not isinstance(listed, list):
        return
    for text in listed[:MAX_ADDRS]:
        if isinstance(text, str) and len(text) <= MAX_ADDR:
            try:
                yield Multiaddr(text)
            except UsageError:
                continue
