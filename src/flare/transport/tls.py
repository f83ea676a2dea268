"""The TLS 1.3 handshake of libp2p (tls/tls.md; RFC 8446), by OpenSSL over memory BIOs.

OpenSSL is given one record at a time, so that what the peer sends behind the handshake stays with the
channel. Once it has derived the traffic secrets (it tells them to its key log) it has done its work: the
records that follow are flare's own. Tickets are not sent and not used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from OpenSSL.crypto import X509

from flare._core.aead import AES_128_GCM, CHACHA20_POLY1305, TAG_SIZE, Aead
from flare._core.records import TlsRecords
from flare.errors import AuthenticationFailed, PeerMismatch, ProtocolViolation
from flare.transport import certificate
from flare.transport.certificate import Certificate
from flare.transport.channel import Channel
from flare.transport.deadline import within
from flare.wire.keys import Identity, PublicKey
from flare.wire.peer_id import PeerId

PROTOCOL: Final = "/tls/1.0.0"
ALPN: Final = b"libp2p"  # the multiplexer is still to be negotiated
MAX_RECORDS: Final = 256  # of one peer's handshake, which takes a handful: defends CPU
MAX_RECORD: Final = 2**14 + 256  # bytes of a record's body (RFC 8446, 5.2)

_HEADER: Final = 5
_RECORD_TYPES: Final = range(20, 24)  # change_cipher_spec, alert, handshake, application_data
_SUITES: Final = {
    "TLS_AES_128_GCM_SHA256": 0x1301,
    "TLS_AES_256_GCM_SHA384": 0x1302,
    "TLS_CHACHA20_POLY1305_SHA256": 0x1303,
}
_PRIORITIZE_CHACHA: Final = 1 << 21  # SSL_OP_PRIORITIZE_CHACHA: a peer without AES in hardware gets its wish
_MUCH_FASTER: Final = 0.5  # of AES's time: ChaCha20 goes first, on machines without AES in hardware


@dataclass(frozen=True, slots=True)
class TlsSession:
    """A finished handshake: who the peer is, and the records that follow."""

    remote_peer: PeerId
    remote_key: PublicKey
    muxer: str | None  # agreed by ALPN; None: it is still to be negotiated
    records: TlsRecords


@dataclass(slots=True)
class _Progress:
    """What OpenSSL's callbacks must know and find out about one handshake."""

    expected_peer: PeerId | None
    muxers: Sequence[bytes]
    peer: tuple[PeerId, PublicKey] | None = None
    secrets: dict[bytes, bytes] = field(default_factory=dict, repr=False)


_contexts: WeakKeyDictionary[Identity, tuple[Certificate, SSL.Context]] = WeakKeyDictionary()


async def handshake(
    channel: Channel,
    identity: Identity,
    *,
    initiator: bool,
    expected_peer: PeerId | None,
    muxers: Sequence[str] = ("/yamux/1.0.0",),
    timeout: float,
) -> TlsSession:
    """Authenticate both peers over `channel` and derive record keys; reads nothing past the last message.

    The initiator is TLS's client. It has finished before the other side has verified it: a refusal comes as
    an alert, which ends the connection later. Raises PeerMismatch when somebody other than `expected_peer`
    answers, AuthenticationFailed, ProtocolViolation, NetworkError, TimedOut after `timeout` seconds.
    """
    progress = _Progress(expected_peer, [name.encode() for name in muxers])
    connection = SSL.Connection(_context_of(identity), None)
    connection.set_app_data(progress)
    if initiator:
        connection.set_alpn_protos([*progress.muxers, ALPN])
        connection.set_connect_state()
    else:
        connection.set_accept_state()
    async with within(timeout, f"the TLS handshake with {expected_peer or 'an unknown peer'}"):
        await _converse(channel, connection, initiator)
    return _session(connection, progress, initiator)


async def _converse(channel: Channel, connection: SSL.Connection, initiator: bool) -> None:
    records = 0
    while True:
        try:
            connection.do_handshake()
            done = True
        except SSL.WantReadError:
            done = False
        except (SSL.Error, ProtocolViolation) as error:
            if alert := _output(connection):
                await channel.write(alert)
            raise error if isinstance(error, ProtocolViolation) else _failure(error) from None
        output = _output(connection)
        if done and not initiator:
            return  # what OpenSSL wrote last are tickets: unsent, they do not count among the records either
        if output:
            await channel.write(output)
        if done:
            return
        records += 1
        if records > MAX_RECORDS:
            raise ProtocolViolation(f"a handshake of more than {MAX_RECORDS} records", protocol=PROTOCOL)
        connection.bio_write(await _record(channel))


async def _record(channel: Channel) -> bytes:
    header = await channel.read_exactly(_HEADER)
    size = int.from_bytes(header[3:], "big")
    if header[0] not in _RECORD_TYPES or header[1] != 3:
        raise ProtocolViolation(f"{header.hex()} begins no TLS record", protocol=PROTOCOL)
    if size > MAX_RECORD:
        raise ProtocolViolation(f"a record of {size} bytes, at most {MAX_RECORD} allowed", protocol=PROTOCOL)
    return header + await channel.read_exactly(size)


def _output(connection: SSL.Connection) -> bytes:
    out = bytearray()
    while True:
        try:
            out += connection.bio_read(MAX_RECORD)
        except SSL.WantReadError:
            return bytes(out)


def _session(connection: SSL.Connection, progress: _Progress, initiator: bool) -> TlsSession:
    # OpenSSL's chain has the client's own certificate left out when the server looks at it
    chain = len(connection.get_peer_cert_chain() or ()) + (not initiator)
    if progress.peer is None or chain != 1:
        raise AuthenticationFailed(f"{chain} certificates instead of one", protocol=PROTOCOL)
    protocol = connection.get_alpn_proto_negotiated()
    if protocol != ALPN and protocol not in progress.muxers:
        raise ProtocolViolation(
            f"the peer chose {protocol!r} as the application protocol"
            if protocol
            else "the peer has no ALPN",
            protocol=PROTOCOL,
        )
    client, server = (
        progress.secrets[b"CLIENT_TRAFFIC_SECRET_0"],
        progress.secrets[b"SERVER_TRAFFIC_SECRET_0"],
    )
    send, receive = (client, server) if initiator else (server, client)
    return TlsSession(
        *progress.peer,
        None if protocol == ALPN else protocol.decode(),
        TlsRecords(_SUITES[connection.get_cipher_name() or ""], send, receive),
    )


# OpenSSL's side


def _context_of(identity: Identity) -> SSL.Context:
    """The context of all connections of `identity`, with its certificate of the time."""
    own = certificate.own(identity)
    kept = _contexts.get(identity)
    if kept is None or kept[0] is not own:
        kept = _contexts[identity] = own, _context(own)
    return kept[1]


def _context(own: Certificate) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE | _PRIORITIZE_CHACHA)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_tls13_ciphersuites(":".join(suites()).encode())
    context.use_privatekey(own.key)
    context.use_certificate(x509.load_der_x509_certificate(own.der))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
    context.set_alpn_select_callback(_choose)
    context.set_keylog_callback(_keep_secret)
    return context


def suites() -> list[str]:
    """Cipher suites as we prefer them: AES first, unless ChaCha20 is much faster on this machine."""
    aes, chacha = _seconds((AES_128_GCM, 16), (CHACHA20_POLY1305, 32))
    return sorted(_SUITES, key=lambda name: ("CHACHA20" in name) != (chacha < _MUCH_FASTER * aes))


def _seconds(*ciphers: tuple[int, int]) -> list[float]:
    """What sealing a full record takes under each, by kind and key size, at best and in turn.

    The first of them warm everything up, and a core whose other half works slows AES more than ChaCha20.
    """
    sealers = [Aead(bytes(key_size), kind, iv=bytes(12)) for kind, key_size in ciphers]
    best = [1.0] * len(sealers)
    buffer = bytearray(2**14 + TAG_SIZE)
    for _ in range(20):
        for index, sealer in enumerate(sealers):
            begun = time.perf_counter()
            sealer.seal_in_place(buffer, 2**14)
            best[index] = min(best[index], time.perf_counter() - begun)
    return best


def _verify(connection: SSL.Connection, shown: X509, _error: int, depth: int, _good: int) -> bool:
    """OpenSSL asks once for each thing that it finds wrong and once at the end: what it thinks counts not."""
    progress: _Progress = connection.get_app_data()
    if depth == 0 and progress.peer is None:
        peer, key = certificate.verify([shown.to_cryptography().public_bytes(Encoding.DER)], time.time())
        if progress.expected_peer is not None and peer != progress.expected_peer:
            raise PeerMismatch(progress.expected_peer, peer)
        progress.peer = peer, key
    return True


def _choose(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """The client's favourite among the multiplexers that we speak (inlined-muxer-negotiation.md)."""
    progress: _Progress = connection.get_app_data()
    for name in offered:
        if name == ALPN or name in progress.muxers:
            return name
    raise ProtocolViolation("the peer offers no application protocol that we speak", protocol=PROTOCOL)


def _keep_secret(connection: SSL.Connection, line: bytes) -> None:
    label, _, secret = line.split()
    connection.get_app_data().secrets[label] = bytes.fromhex(secret.decode())


def _failure(error: SSL.Error) -> ProtocolViolation:
    """OpenSSL's reasons in a sentence."""
    reasons = [reason for _, _, reason in error.args[0]] if error.args else []
    if "peer did not return a certificate" in reasons:
        return AuthenticationFailed("the peer sent no certificate", protocol=PROTOCOL)
    told = "; ".join(reasons) or "the handshake failed"
    mistrust = any(word in told for word in ("certificate", "signature", "decrypt", "unknown ca"))
    return (AuthenticationFailed if mistrust else ProtocolViolation)(told, protocol=PROTOCOL)
