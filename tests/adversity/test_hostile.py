"""Strangers at the door: no libp2p at all, handshakes that lie, and peers that never get on with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare._core.wire import encode_uvarint
from flare.config import HostLimits
from flare.errors import AuthenticationFailed, DecodeError, DialFailed, FlareError, PeerMismatch
from flare.host import Host
from flare.transport import multistream
from flare.wire.keys import Identity
from tests.adversity.scene import LOOPBACK, PATIENCE, QUICK, SLACK, once, scene
from tests.support.aio import aio, eventually, run
from tests.support.hostile import LIES, client, ends, liar, raw
from tests.support.proxy import Plan

HELLO = multistream.proposal("/noise")
STAGES = [b"", HELLO[:20], HELLO, HELLO + b"\0\x20" + bytes(range(32))]
GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: example.com\r\nUser-Agent: curl/8\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "a name of 63 bits": b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100),
    "a name one byte too long": encode_uvarint(1025) + b"a" * 1024 + b"\n",
    "a name that is not UTF-8": multistream.encode(multistream.HEADER) + b"\x03\xff\xfe\n",
    "a name without newline": b"\x04/abc",
    "proposals without end": multistream.proposal("/tls/1.0.0") + multistream.encode("/a") * 500,
    "a header twice": multistream.encode(multistream.HEADER) * 2,
    "noise of 0 bytes": HELLO + b"\0\0",
    "noise of 31 bytes": HELLO + b"\0\x1f" + bytes(31),
    "noise with a key of zeros": HELLO + b"\0\x20" + bytes(32),
    "noise of 64 KiB": HELLO + b"\xff\xff" + bytes(range(256)) * 256,
    "noise, then garbage": HELLO + b"\0\x20" + b"\x09" + bytes(31) + b"\0\x60" + b"x" * 0x60,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_costs_its_sender_the_connection(name: str) -> None:
    async def main() -> None:
        async with scene(lanes=0) as the_scene, raw(the_scene.target.full_addrs[0]) as sock:
            with contextlib.suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(sock, GARBAGE[name])
            assert await ends(sock, PATIENCE + SLACK)
            await eventually(lambda: the_scene.log.handshakes)
            assert isinstance(the_scene.log.handshakes[0], FlareError)

    run(main())


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(STAGES), st.binary(max_size=300)),
        min_size=10,
        max_size=30,
    )
)
def test_random_bytes_at_each_stage(attempts: list[tuple[bytes, bytes]]) -> None:
    async def main() -> None:
        async with scene(lanes=0) as the_scene:

            async def stranger(prefix: bytes, noise: bytes) -> None:
                async with raw(the_scene.target.full_addrs[0]) as sock:
                    with contextlib.suppress(ConnectionError):
                        await asyncio.get_running_loop().sock_sendall(sock, prefix + noise)
                        sock.shutdown(1)
                    assert await ends(sock, PATIENCE + SLACK)

            await asyncio.gather(*(stranger(*attempt) for attempt in attempts))

    run(main())


class TestTime:
    @once
    @pytest.mark.parametrize("said", [b"", HELLO[:1], HELLO, HELLO + b"\0\x20" + b"\x09" * 32])
    async def test_silence_ends_with_the_handshake_timeout(self, said: bytes) -> None:
        async with scene(lanes=0) as the_scene, raw(the_scene.target.full_addrs[0]) as sock:
            began = time.monotonic()
            await asyncio.get_running_loop().sock_sendall(sock, said)
            assert await ends(sock, PATIENCE + SLACK)
            assert time.monotonic() - began > PATIENCE * 0.9
            await eventually(lambda: the_scene.log.handshakes)
            assert f"took longer than {PATIENCE:g} s" in str(the_scene.log.handshakes[0])

    @once
    async def test_a_byte_now_and_then_buys_no_time(self) -> None:
        async with scene(lanes=0) as the_scene, raw(the_scene.target.full_addrs[0]) as sock:
            began = time.monotonic()

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    for byte in HELLO:
                        await asyncio.get_running_loop().sock_sendall(sock, bytes((byte,)))
                        await asyncio.sleep(0.1)

            dripping = asyncio.ensure_future(drip())
            assert await ends(sock, PATIENCE + SLACK)
            assert time.monotonic() - began < PATIENCE + SLACK
            await dripping

    @once
    async def test_half_open_at_the_limit_and_one_past_it(self) -> None:
        limit = 5
        config = replace(QUICK, host=replace(HostLimits(), max_handshakes=limit))
        async with (
            scene(lanes=1, config=config) as the_scene,
            contextlib.AsyncExitStack() as stack,
        ):
            addr = the_scene.target.full_addrs[0]
            held = [await stack.enter_async_context(raw(addr)) for _ in range(limit)]
            admission = the_scene.target._tcp.admission
            await eventually(lambda: admission.handshakes == limit)
            async with raw(addr):
                assert await ends(held[0], PATIENCE + SLACK)
                assert admission.evicted == 1, "the oldest gave way at once, not after a timeout"
                assert admission.handshakes == limit
            for sock in held:
                assert await ends(sock, PATIENCE + SLACK)
            (outcome,) = await the_scene.attempts([Plan()])
            assert outcome.identified, "when the half-open ones are gone, there is room again"

    @once
    async def test_a_dialler_of_a_port_that_never_speaks(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            async with scene(lanes=0) as the_scene:
                began = time.monotonic()
                with pytest.raises(DialFailed, match=f"took longer than {PATIENCE:g} s"):
                    await the_scene.target.connect(f"/ip4/127.0.0.1/tcp/{port}")
                assert time.monotonic() - began < PATIENCE + SLACK


class TestLies:
    @pytest.mark.parametrize("lie", LIES)
    def test_a_dialler_that_is_not_who_it_says(self, lie: str) -> None:
        async def main() -> None:
            async with scene(lanes=0) as the_scene:
                victim = Identity.generate()
                with contextlib.suppress(FlareError):
                    async with client(the_scene.target.full_addrs[0], liar(victim, lie)) as hostile:
                        assert await ends(hostile.sock, PATIENCE + SLACK)
                await eventually(lambda: the_scene.log.handshakes)
                assert isinstance(the_scene.log.handshakes[0], AuthenticationFailed | DecodeError)
                assert not the_scene.target.connections_to(victim.peer_id)

        run(main())

    @pytest.mark.parametrize("lie", LIES)
    def test_a_listener_that_is_not_who_it_says(self, lie: str) -> None:
        async def main() -> None:
            async with scene(lanes=0) as the_scene:
                victim = Identity.generate()
                async with Host(identity=liar(victim, lie), listen=[LOOPBACK], punch=False) as hostile:
                    addr = hostile.addrs[0].with_peer(victim.peer_id)
                    with pytest.raises(DialFailed) as failed:
                        await the_scene.target.connect(addr)
                    assert isinstance(failed.value.attempts[0][1], AuthenticationFailed | DecodeError)

        run(main())

    @aio
    async def test_an_honest_listener_that_is_somebody_else(self) -> None:
        async with scene(lanes=0) as the_scene, Host(listen=[LOOPBACK], punch=False) as other:
            expected = Identity.generate().peer_id
            with pytest.raises(PeerMismatch) as failed:
                await the_scene.target.connect(other.addrs[0].with_peer(expected))
            assert (failed.value.expected, failed.value.actual) == (expected, other.peer_id)

    @aio
    async def test_a_handshake_that_is_played_again(self) -> None:
        async with scene(lanes=1) as the_scene:
            (outcome,) = await the_scene.attempts([Plan()])
            assert outcome.run is not None
            async with raw(the_scene.target.full_addrs[0]) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, bytes(outcome.run.up.data))
                assert await ends(sock, PATIENCE + SLACK)
            await eventually(lambda: the_scene.log.handshakes)
            assert isinstance(the_scene.log.handshakes[0], AuthenticationFailed)
