"""From a channel to keys and a multiplexer, with and without early muxer negotiation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from flare._core.engine import Engine
from flare._core.link import LinkStream, NoiseRecords
from flare.config import SECURITY, Security, Timeouts
from flare.errors import AuthenticationFailed, ProtocolNotSupported
from flare.transport import multistream, noise
from flare.transport.noise import RecordSecrets
from flare.transport.upgrade import RecordChannel, Upgraded, upgrade
from flare.wire.keys import Identity
from tests.support.aio import aio
from tests.support.channels import MemoryChannel, channel_pair

ALICE = Identity.generate()
BOB = Identity.generate()
TIMES = Timeouts()


def records(secrets: RecordSecrets) -> NoiseRecords:
    return NoiseRecords(secrets.send_key, secrets.recv_key, secrets.send_nonce, secrets.recv_nonce)


async def both(
    near: MemoryChannel,
    far: MemoryChannel,
    *,
    dials: tuple[Security, ...] = SECURITY,
    listens: tuple[Security, ...] = SECURITY,
) -> tuple[Upgraded, Upgraded]:
    dialler = upgrade(near, ALICE, initiator=True, expected_peer=BOB.peer_id, timeouts=TIMES, security=dials)
    listener = upgrade(far, BOB, initiator=False, expected_peer=None, timeouts=TIMES, security=listens)
    return tuple(await asyncio.gather(dialler, listener))


async def noise_without_muxers(channel: Any, identity: Identity, *, initiator: bool) -> RecordChannel:
    """A peer that knows no early muxer negotiation, up to where it would negotiate the muxer."""
    if initiator:
        await multistream.select(channel, ("/noise",), 5.0)
    else:
        await multistream.handle(channel, ("/noise",), 5.0)
    session = await noise.handshake(
        channel, identity, initiator=initiator, expected_peer=None, muxers=(), timeout=5.0
    )
    assert session.muxer is None
    return RecordChannel(channel, session.records)


@aio
async def test_two_of_ours_agree_in_three_writes() -> None:
    near, far = channel_pair()
    a, b = await both(near, far, dials=("noise",))
    assert isinstance(a.records, RecordSecrets)
    assert isinstance(b.records, RecordSecrets)
    assert (a.remote_peer, b.remote_peer) == (BOB.peer_id, ALICE.peer_id)
    assert (a.muxer, b.muxer) == ("/yamux/1.0.0", "/yamux/1.0.0")
    assert (a.security, a.leftover, b.leftover) == ("/noise", b"", b"")
    assert a.records.send_key == b.records.recv_key
    assert len(near.written) == 2, "the proposal travels with the first Noise message"


@aio
@pytest.mark.parametrize("dials", [True, False])
async def test_data_in_the_record_of_the_last_negotiation_message_reaches_the_link(dials: bool) -> None:
    """A peer without early negotiation sends yamux frames along with its proposal, or with its answer."""
    near, far = channel_pair()
    ours = asyncio.create_task(
        upgrade(near, ALICE, initiator=not dials, expected_peer=None, timeouts=TIMES, security=("noise",))
    )
    theirs = await noise_without_muxers(far, BOB, initiator=dials)
    stream_id = 1 if dials else 2
    syn = bytes.fromhex("0000 0001") + stream_id.to_bytes(4, "big") + (5).to_bytes(4, "big") + b"hello"
    if dials:
        await theirs.write(multistream.proposal("/yamux/1.0.0") + syn)
        made = await ours
        assert await theirs.read_frame(1024) == b"/multistream/1.0.0\n"
        assert await theirs.read_frame(1024) == b"/yamux/1.0.0\n"
    else:
        for expected in ("/multistream/1.0.0", "/yamux/1.0.0"):
            assert await theirs.read_frame(1024) == expected.encode() + b"\n"
        await theirs.write(
            multistream.encode("/multistream/1.0.0") + multistream.encode("/yamux/1.0.0") + syn
        )
        made = await ours
    assert made.muxer == "/yamux/1.0.0"
    assert isinstance(made.records, RecordSecrets)
    assert made.records.recv_nonce < theirs.hand_over()[0].send_nonce, "the record is to be read once more"

    await theirs.write(
        bytes.fromhex("0000 0000") + stream_id.to_bytes(4, "big") + (6).to_bytes(4, "big") + b" world"
    )
    engine = Engine()
    link = engine.attach_memory(record=records(made.records), initiator=not dials, leftover=made.leftover)
    streams: list[LinkStream] = []
    link.on_stream = streams.append
    link.feed(await near.read(1000))
    engine.run_pass()
    assert streams[0].read() == b"hello world"
    engine.close()


@aio
async def test_a_muxer_nobody_speaks() -> None:
    near, far = channel_pair()
    ours = asyncio.create_task(
        upgrade(near, ALICE, initiator=True, expected_peer=None, timeouts=TIMES, security=("noise",))
    )
    theirs = await noise_without_muxers(far, BOB, initiator=False)
    await theirs.write(multistream.encode("/multistream/1.0.0") + multistream.encode("na"))
    with pytest.raises(ProtocolNotSupported, match="/yamux"):
        await ours


@aio
@pytest.mark.parametrize("security", [("noise",), ("tls",), ("tls", "noise"), ("noise", "tls")])
async def test_a_peer_that_wants_another_security(security: tuple[Security, ...]) -> None:
    near, far = channel_pair()
    ours = asyncio.create_task(
        upgrade(near, ALICE, initiator=True, expected_peer=None, timeouts=TIMES, security=security)
    )
    await far.write(multistream.encode("/multistream/1.0.0") + multistream.encode("na") * len(security))
    with pytest.raises(ProtocolNotSupported, match=r"/noise|/tls"):
        await ours


@aio
@pytest.mark.parametrize(
    ("dials", "listens", "agreed"),
    [
        (("tls", "noise"), ("tls", "noise"), "/tls/1.0.0"),
        (("noise", "tls"), ("tls", "noise"), "/noise"),
        (("tls", "noise"), ("noise", "tls"), "/tls/1.0.0"),
        (("tls", "noise"), ("noise",), "/noise"),
        (("noise", "tls"), ("tls",), "/tls/1.0.0"),
        (("tls",), ("tls", "noise"), "/tls/1.0.0"),
        (("noise",), ("tls", "noise"), "/noise"),
    ],
)
async def test_the_dialler_s_order_decides(
    dials: tuple[Security, ...], listens: tuple[Security, ...], agreed: str
) -> None:
    a, b = await both(*channel_pair(), dials=dials, listens=listens)
    assert a.security == b.security == agreed
    assert a.muxer == b.muxer == "/yamux/1.0.0"
    assert a.leftover == b.leftover == b""


@aio
async def test_a_large_write_is_several_records() -> None:
    near, far = channel_pair()
    here = RecordChannel(near, RecordSecrets(bytes(32), bytes(32)))
    there = RecordChannel(far, RecordSecrets(bytes(32), bytes(32)))
    data = bytes(range(256)) * 1000
    await here.write(data)
    assert await there.read_exactly(len(data)) == data
    assert here.hand_over()[0].send_nonce == there.hand_over()[0].recv_nonce == 4


@aio
async def test_an_empty_record_is_passed_over() -> None:
    near, far = channel_pair()
    there = RecordChannel(far, RecordSecrets(bytes(32), bytes(32)))
    cipher = ChaCha20Poly1305(bytes(32))
    for counter, plain in enumerate((b"", b"x")):
        sealed = cipher.encrypt(b"\0\0\0\0" + counter.to_bytes(8, "little"), plain, None)
        await near.write(len(sealed).to_bytes(2, "big") + sealed)
    assert await there.read(10) == b"x"


@aio
async def test_records_that_do_not_decrypt() -> None:
    near, far = channel_pair()
    secured = RecordChannel(near, RecordSecrets(bytes(32), bytes(32)))
    await far.write(b"\x00\x20" + bytes(32))
    with pytest.raises(AuthenticationFailed, match="does not decrypt"):
        await secured.read(10)
