"""Delegated routing (Delegated Routing V1 HTTP API): what its answers mean, and what hostile ones cost."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.config import HttpLimits
from flare.errors import DecodeError, FrameTooLarge, NetworkError, UsageError
from flare.nat.relay_sources.routing import (
    MAX_ADDRS,
    MAX_RECORDS,
    RoutingRelays,
    decode_records,
    random_key,
)
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from flare.wire.multibase import multibase_decode
from flare.wire.peer_id import PeerId
from tests.support.aio import aio
from tests.support.http_server import server

PEERS = [Identity.generate().peer_id for _ in range(3)]
PUBLIC = "/ip4/8.8.4.4/tcp/4001"


def record(peer: PeerId | str, *addrs: Any, **more: Any) -> dict[str, Any]:
    return {"Schema": "peer", "ID": str(peer), "Addrs": list(addrs), **more}


def answer(*records: Any, name: str = "Peers") -> bytes:
    return json.dumps({name: list(records)}).encode()


class TestRecords:
    @pytest.mark.parametrize("name", ["Peers", "Providers"])
    def test_peers_and_providers(self, name: str) -> None:
        body = answer(record(PEERS[0], PUBLIC, Protocols=["transport-bitswap"], New=1), name=name)
        (found,) = decode_records(body)
        assert (found.peer, found.addrs) == (PEERS[0], (Multiaddr(PUBLIC),))

    def test_a_peer_id_may_be_a_cid(self) -> None:
        (found,) = decode_records(answer(record(PEERS[0].to_cid(), PUBLIC)))
        assert found.peer == PEERS[0]

    def test_a_stream_of_lines(self) -> None:
        lines = b"\n".join(json.dumps(record(peer, PUBLIC)).encode() for peer in PEERS)
        assert [found.peer for found in decode_records(lines + b"\n\n")] == PEERS
        assert [found.peer for found in decode_records(lines.split(b"\n")[0])] == PEERS[:1]

    def test_schemas_of_old_are_read_alike(self) -> None:
        old = {"Protocol": "transport-bitswap", "Schema": "bitswap", "ID": str(PEERS[0]), "Addrs": [PUBLIC]}
        assert decode_records(answer(old))[0].addrs == (Multiaddr(PUBLIC),)

    @pytest.mark.parametrize("body", [b'{"Peers": null}', b'{"Providers": []}', b'{"Peers": null, "X": 1}'])
    def test_nobody(self, body: bytes) -> None:
        assert decode_records(body) == []

    @pytest.mark.parametrize(
        "bad",
        [
            None,
            7,
            "text",
            [],
            {},
            {"ID": 7},
            {"ID": "nobody"},
            {"ID": "1" * 600},
            {"ID": None, "Addrs": [PUBLIC]},
        ],
    )
    def test_records_that_are_none_are_left_out(self, bad: Any) -> None:
        (found,) = decode_records(answer(bad, record(PEERS[0], PUBLIC), bad))
        assert found.peer == PEERS[0]

    def test_addresses_that_are_none_are_left_out(self) -> None:
        bad = [None, 7, "", "/", "/ip4/1.2.3", "x" * 600, {"a": 1}, "/ip4/1.2.3.4/tcp/99999"]
        assert decode_records(answer(record(PEERS[0], *bad, PUBLIC)))[0].addrs == (Multiaddr(PUBLIC),)
        assert decode_records(answer({"ID": str(PEERS[0]), "Addrs": PUBLIC}))[0].addrs == ()
        assert decode_records(answer({"ID": str(PEERS[0])}))[0].addrs == ()

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\n",
            b"null",
            b"[]",
            b"7",
            b'"Peers"',
            b"{}",
            b'{"Peers": 7}x',
            b"<html>",
            b"\xff",
            b"{" * 5000,
        ],
    )
    def test_what_is_no_answer(self, body: bytes) -> None:
        with pytest.raises(DecodeError):
            decode_records(body)

    @pytest.mark.parametrize("deep", [b"[" * 100_000 + b"]" * 100_000, b'{"Peers":' * 100_000])
    def test_deep_ones(self, deep: bytes) -> None:
        with pytest.raises(DecodeError):
            decode_records(deep)

    def test_records_at_the_limit_and_one_past(self) -> None:
        peers = [PeerId(b"\x12\x20" + bytes([number]) * 32) for number in range(MAX_RECORDS + 1)]
        records = [record(peer, PUBLIC) for peer in peers]
        assert len(decode_records(answer(*records[:MAX_RECORDS]))) == MAX_RECORDS
        assert len(decode_records(answer(*records))) == MAX_RECORDS
        lines = b"\n".join(json.dumps(one).encode() for one in records)
        assert len(decode_records(lines)) == MAX_RECORDS

    def test_addresses_at_the_limit_and_one_past(self) -> None:
        addrs = [f"/ip4/8.8.8.8/tcp/{port}" for port in range(1, MAX_ADDRS + 2)]
        assert len(decode_records(answer(record(PEERS[0], *addrs[:MAX_ADDRS])))[0].addrs) == MAX_ADDRS
        assert len(decode_records(answer(record(PEERS[0], *addrs)))[0].addrs) == MAX_ADDRS

    @given(st.binary(max_size=300))
    def test_any_bytes(self, body: bytes) -> None:
        with contextlib.suppress(DecodeError):
            decode_records(body)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(str(PEERS[0])),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(st.sampled_from(["Peers", "Providers", "ID", "Addrs", "Schema"]), inner)
            ),
            max_leaves=20,
        )
    )
    def test_any_json(self, value: Any) -> None:
        with contextlib.suppress(DecodeError):
            assert len(decode_records(json.dumps(value).encode())) <= MAX_RECORDS


class TestKey:
    def test_it_is_a_cid_of_a_sha256_and_another_each_time(self) -> None:
        first, second = random_key(), random_key()
        assert first != second
        assert multibase_decode(first)[:4] == bytes.fromhex("01551220")
        assert len(multibase_decode(first)) == 36


class TestService:
    @aio
    async def test_the_peers_closest_to_a_random_key(self) -> None:
        heads: list[bytes] = []
        body = answer(
            record(PEERS[0], PUBLIC, "/ip4/10.0.0.1/tcp/1"), record(PEERS[1], "/ip4/10.0.0.1/tcp/1")
        )
        async with server(lambda head: heads.append(head) or ok(body)) as url:
            (found,) = await RoutingRelays(url).find()
        assert (found.peer, found.addrs) == (PEERS[0], (Multiaddr(PUBLIC),))
        assert heads[0].startswith(b"GET /routing/v1/dht/closest/peers/b")
        assert b"Accept: application/json\r\n" in heads[0]

    @aio
    async def test_a_resource_of_the_callers_choice(self) -> None:
        heads: list[bytes] = []
        async with server(lambda head: heads.append(head) or ok(answer(name="Providers"))) as url:
            assert await RoutingRelays(f"{url}/routing/v1/providers/bafkqaaa?filter-addrs=tcp").find() == []
        assert heads[0].startswith(b"GET /routing/v1/providers/bafkqaaa?filter-addrs=tcp HTTP/1.1\r\n")

    @pytest.mark.parametrize(
        "addr",
        [
            "/ip4/127.0.0.1/tcp/22",
            "/ip4/192.168.1.1/tcp/80",
            "/ip4/169.254.169.254/tcp/80",
            "/ip6/::1/tcp/80",
            "/ip6/fd00::1/tcp/80",
            "/dns4/localhost/tcp/80",
            "/dnsaddr/example.com",
            "/ip4/8.8.8.8/tcp/4001/ws",
            "/ip4/8.8.8.8/udp/4001",
            f"{PUBLIC}/p2p/{PEERS[2]}",
            f"{PUBLIC}/p2p/{PEERS[2]}/p2p-circuit",
        ],
    )
    @aio
    async def test_it_cannot_send_us_where_it_likes(self, addr: str) -> None:
        async with server(lambda head: ok(answer(record(PEERS[0], addr)))) as url:
            assert await RoutingRelays(url).find() == []

    @aio
    async def test_statuses(self) -> None:
        statuses = [b"404 Not Found", b"429 Slow down", b"501 Not Implemented", b"500 Oh", b"204 None"]
        async with server(lambda head: b"HTTP/1.1 " + statuses.pop(0) + b"\r\n\r\n") as url:
            assert await RoutingRelays(url).find() == [], "which is nobody"
            while statuses:
                with pytest.raises(NetworkError, match="status"):
                    await RoutingRelays(url).find()

    @aio
    async def test_bodies_at_the_limit_and_one_past(self) -> None:
        body = answer(record(PEERS[0], PUBLIC))
        async with server(lambda head: ok(body)) as url:
            assert await RoutingRelays(url, limits=HttpLimits(max_body=len(body))).find()
            with pytest.raises(FrameTooLarge):
                await RoutingRelays(url, limits=HttpLimits(max_body=len(body) - 1)).find()

    @pytest.mark.parametrize("url", ["", "ftp://x/", "http://", "https://host/#part"])
    def test_what_is_no_service(self, url: str) -> None:
        with pytest.raises(UsageError):
            RoutingRelays(url)


def ok(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
