"""The short way of packets of data: what it does is what aioquic's long way does, on any network."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection

from flare._core.quic import available
from flare.config import KIB, QuicLimits
from flare.errors import ProtocolViolation
from flare.transport import quic_datapath, quic_incoming
from flare.transport.quic_aioquic import AioquicConnection
from tests.support.quic_engines import EnginePair, Path

BASE, MOST = QuicLimits().datagram_size, QuicLimits().max_datagram_size
short_way = pytest.mark.skipif(not available(), reason="libcrypto is not within reach")


def connected(**how: Any) -> EnginePair:
    pair = EnginePair(**how)
    pair.handshake()
    return pair


def send(pair: EnginePair, data: bytes, *, turns: int = 3000, stream: int | None = None) -> int:
    """`data` from the client to the server, to its end; how many datagrams it took."""
    stream = pair.client.open_stream() if stream is None else stream
    sent = taken = 0
    for _ in range(turns):
        if taken < len(data):
            taken += pair.client.write(stream, data[taken:])
            if taken == len(data):
                pair.client.finish(stream)
        sent += pair.turn()
        if stream in pair.there.ended:
            break
    assert pair.there.data[stream] == data
    assert stream in pair.there.ended
    return sent


def carrying(size: int) -> Path:
    """A path that swallows what is larger."""
    return lambda datagrams: [datagram for datagram in datagrams if len(datagram) <= size]


def a_while(pair: EnginePair, turns: int = 150) -> None:
    """The client has some data to send in each of so many round trips."""
    stream = pair.client.open_stream()
    for _ in range(turns):
        pair.client.write(stream, bytes(20_000))
        pair.turn()


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Calls of one of aioquic's own methods; its only item counts them."""
    calls = [0]
    original = getattr(QuicConnection, name)

    def count(self: Any, *args: Any) -> Any:
        calls[0] += 1
        return original(self, *args)

    monkeypatch.setattr(QuicConnection, name, count)
    return calls


@short_way
def test_bulk_data_goes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = connected()
    came, went = counted(monkeypatch, "receive_datagram"), counted(monkeypatch, "datagrams_to_send")
    packets = send(pair, os.urandom(1 << 20))
    assert packets > 700
    assert came[0] + went[0] < 10


@short_way
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_peer_that_takes_another_of_our_connection_ids(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As quic-go does after the handshake."""
    pair = connected()
    getattr(pair, who)._quic.change_connection_id()
    pair.client.ping(1)
    pair.turn()
    came = counted(monkeypatch, "receive_datagram")
    send(pair, os.urandom(1 << 20))
    assert came[0] < 10


def test_without_libcrypto_it_goes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_incoming, "available", lambda: False)
    pair = connected()
    came = counted(monkeypatch, "receive_datagram")
    send(pair, os.urandom(100_000))
    assert came[0] > 80


@pytest.mark.parametrize("short", [pytest.param(True, marks=short_way), False])
@pytest.mark.parametrize("seed", range(6))
def test_a_network_that_loses_doubles_and_disorders(
    seed: int, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not short:
        monkeypatch.setattr(quic_incoming, "available", lambda: False)
    chance = random.Random(seed)
    loss = chance.choice((0.01, 0.1, 0.3))

    def path(datagrams: list[bytes]) -> list[bytes]:
        kept = [datagram for datagram in datagrams if chance.random() > loss]
        for at in range(len(kept)):
            if chance.random() < 0.1:
                other = chance.randrange(len(kept))
                kept[at], kept[other] = kept[other], kept[at]
        return [datagram for datagram in kept for _ in range(1 + (chance.random() < 0.05))]

    pair = connected()
    pair.path = path
    send(pair, chance.randbytes(300_000))


def test_what_was_forged_is_nothing() -> None:
    """RFC 9000, 12.2: as if it had not come, however often."""

    def path(datagrams: list[bytes]) -> list[bytes]:
        forged = [data[:-1] + bytes((data[-1] ^ 1,)) for data in datagrams]
        return [data for both in zip(forged, datagrams, strict=True) for data in both]

    pair = connected()
    pair.path = path
    send(pair, os.urandom(200_000))


@pytest.mark.parametrize("streams", [2, 40])
def test_many_streams_share_packets_and_none_is_mixed_up(streams: int) -> None:
    pair = connected()
    data = {pair.client.open_stream(): os.urandom(7_000 + 13 * at) for at in range(streams)}
    for stream, content in data.items():
        assert pair.client.write(stream, content) == len(content)
        pair.client.finish(stream)
    for _ in range(100):
        pair.turn()
    assert pair.there.data == data
    assert pair.there.ended == set(data)


@short_way
def test_a_packet_takes_the_words_of_several_streams() -> None:
    pair = connected()
    streams = [pair.client.open_stream() for _ in range(30)]
    for stream in streams:
        pair.client.write(stream, b"hello")
    assert pair.turn() == 1
    assert pair.there.received == dict.fromkeys(streams, 5)


def test_an_end_without_data() -> None:
    pair = connected()
    stream = pair.client.open_stream()
    pair.client.write(stream, b"all there is")
    pair.turn()
    pair.client.finish(stream)
    pair.turn()
    assert pair.there.ended == {stream}


@short_way
def test_what_the_pacer_holds_back_is_not_forgotten() -> None:
    """A ping, or a probe after a timeout, when the bucket is empty and no data waits."""
    pair = connected()
    connection = pair.client._quic
    a_while(pair, 5)
    pair.turn()
    connection._recovery._pacer._credit = 0.0
    connection._recovery._pacer._at = pair.now
    pair.client.ping(7)
    assert pair.client.datagrams(pair.now) == []
    at = pair.client.deadline()
    assert at is not None
    assert at < pair.now + 0.02
    for _ in range(3):
        pair.turn()
    assert pair.here.pongs == [7]


@pytest.mark.parametrize("size", [0, 1, 1100, 1150, 5000])
def test_ends_behind_the_data_of_another_stream(size: int) -> None:
    pair = connected()
    first, second, third = (pair.client.open_stream() for _ in range(3))
    for stream in (second, third):
        pair.client.write(stream, b"begun")
    pair.turn()
    pair.client.write(first, bytes(100_000))
    for stream in (second, third):
        pair.client.write(stream, bytes(size))
        pair.client.finish(stream)
    pair.client.finish(first)
    for _ in range(20):
        pair.turn()
    assert pair.there.ended == {first, second, third}
    assert pair.there.received == {first: 100_000, second: 5 + size, third: 5 + size}


def test_pings_are_answered() -> None:
    pair = connected()
    pair.client.ping(77)
    for _ in range(5):
        pair.turn()
    assert pair.here.pongs == [77]


def test_a_stream_that_was_reset_sends_no_more() -> None:
    pair = connected()
    stream, other = pair.client.open_stream(), pair.client.open_stream()
    pair.client.write(stream, bytes(200 * KIB))
    pair.client.write(other, bytes(200 * KIB))
    pair.turn()
    pair.client.reset(stream, 0)
    for _ in range(50):
        pair.turn()
    assert pair.there.received[stream] < 200 * KIB
    assert pair.there.received[other] == 200 * KIB


def test_the_peers_windows_hold() -> None:
    pair = connected(limits=QuicLimits(stream_window=30_000, max_stream_window=30_000))
    pair.there.stream_data = lambda stream, data, fin: pair.there.received.update({stream: len(data)})  # type: ignore[method-assign]
    pair.server._quic.on_data = pair.there.stream_data
    stream = pair.client.open_stream()
    pair.client.write(stream, bytes(100_000))
    for _ in range(50):
        pair.turn()
    assert pair.there.received[stream] == 30_000, "nothing of it was read"


@short_way
def test_an_acknowledgement_of_what_was_never_sent() -> None:
    """RFC 9000, 13.1."""
    pair = connected()
    ended: list[BaseException | None] = []
    pair.here.terminated = ended.append  # type: ignore[attr-defined]
    server = pair.server._quic
    never = pair.client._quic._packet_number + 100
    server._space.ack_queue.add(never)
    server._space.largest_received_packet = never
    server._space.ack_at = pair.now
    for _ in range(3):
        pair.turn()
    (reason,) = ended
    assert isinstance(reason, ProtocolViolation)
    assert f"packet {never} was never sent" in str(reason)


# Keys


def phases(connection: AioquicConnection) -> tuple[int, int]:
    pair = connection._quic._cryptos[quic_incoming.ONE_RTT]
    return pair.recv.key_phase, pair.send.key_phase


@short_way
def test_new_keys_before_the_old_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9001, 6.6."""
    pair = connected()
    assert phases(pair.client) == (0, 0)
    monkeypatch.setattr(quic_datapath, "KEY_PACKETS", 200)
    seen = set()
    stream = pair.client.open_stream()
    for _ in range(60):
        pair.client.write(stream, bytes(64 * KIB))
        pair.turn()
        seen.add(phases(pair.client))
    assert seen == {(0, 0), (1, 1)}
    assert pair.there.received[stream] > 2_000_000


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_peer_that_takes_new_keys(who: str) -> None:
    pair = connected()
    send(pair, os.urandom(100_000))
    getattr(pair, who)._quic.request_key_update()
    send(pair, os.urandom(100_000))
    assert phases(pair.client) == phases(pair.server) == (1, 1)


# How large datagrams are


@short_way
@pytest.mark.parametrize("size", [MOST, 1400, 1300, BASE])
def test_datagrams_are_as_large_as_the_path_carries(size: int) -> None:
    largest = 0

    def path(datagrams: list[bytes]) -> list[bytes]:
        nonlocal largest
        passed = carrying(size)(datagrams)
        largest = max([largest, *map(len, passed)])
        return passed

    pair = connected(path=path)
    a_while(pair)
    assert size - 20 <= largest <= size
    assert largest == pair.client._quic.mtu.size


@short_way
def test_a_lost_probe_is_no_congestion() -> None:
    """RFC 9000, 14.4."""
    pair = connected(path=carrying(BASE))
    losses = 0
    congestion = pair.client._quic._recovery._cc
    original = congestion.on_packets_lost

    def lost(**how: Any) -> None:
        nonlocal losses
        losses += 1
        original(**how)

    congestion.on_packets_lost = lost  # type: ignore[method-assign]
    a_while(pair)
    assert pair.client._quic.mtu.size == BASE
    assert losses == 0


@short_way
def test_a_path_that_shrinks() -> None:
    """RFC 8899, 4.3: what is swallowed is sent again in datagrams that pass."""
    pair = connected()
    send(pair, os.urandom(200_000))
    assert pair.client._quic.mtu.size == MOST
    pair.path = carrying(1250)
    send(pair, os.urandom(200_000))
    assert pair.client._quic.mtu.size <= 1250


def test_a_client_that_moves() -> None:
    """RFC 9000, 9: the server follows, and finds out anew what the path carries."""
    pair = connected()
    send(pair, os.urandom(100_000))
    pair.address = ("192.0.2.7", 7)
    send(pair, os.urandom(300_000))
    assert pair.server.remote == pair.address


@short_way
def test_the_peer_says_how_much_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from aioquic.quic.packet import QuicTransportParameters

    real = quic_datapath.pull_quic_transport_parameters

    def told(buffer: Any) -> QuicTransportParameters:
        found = real(buffer)
        found.max_udp_payload_size = 1300
        return found

    monkeypatch.setattr(quic_datapath, "pull_quic_transport_parameters", told)
    pair = connected()
    a_while(pair)
    assert 1280 < pair.client._quic.mtu.size <= 1300
