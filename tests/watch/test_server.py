"""StatusServer on real hosts: what each path says after real reservations, circuits and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator

import pytest

import flare
from flare.errors import DialFailed
from flare.watch import watcher
from tests.support.aio import aio, eventually
from tests.support.loopback import echo, host, relay
from tests.watch.client import get, raw

QUIET = {"punch": False}
ANYWHERE = "127.0.0.1:0"
CALM = flare.StatusLimits(max_lag=3600.0)  # a stalled machine makes nobody sick
EVIL = "<script>alert(1)</script>\x1b[31m\u202e&\"'"


def watching(watched: flare.RelayServer | flare.Host) -> flare.StatusServer:
    return flare.StatusServer(watched, ANYWHERE, limits=CALM)


def reserved(made: flare.Host) -> bool:
    return any(addr.is_circuit for addr in made.addrs)


class Scene:
    """A watched relay, bob and alice with places on it, and a circuit between them."""

    status: flare.StatusServer
    server: flare.RelayServer
    relaying: flare.Host
    alice: flare.Host
    bob: flare.Host
    connection: flare.Connection

    async def carry(self, count: int) -> None:
        """`count` bytes and back again."""
        async with self.connection.open_stream("/echo/1") as stream:
            await stream.write(bytes(count))
            await stream.close_write()
            await stream.read_exactly(count)


@contextlib.asynccontextmanager
async def scene(limits: flare.RelayLimits | None = None) -> AsyncIterator[Scene]:
    made = Scene()
    async with (
        relay(limits or flare.RelayLimits.unlimited()) as (made.relaying, made.server),
        watching(made.server) as made.status,
    ):
        addrs = made.relaying.full_addrs
        async with (
            host(relays=addrs, agent=EVIL, **QUIET) as made.bob,
            host(relays=addrs, **QUIET) as made.alice,
        ):
            made.bob.handle("/echo/1", echo)
            await eventually(lambda: reserved(made.bob) and reserved(made.alice))
            made.connection = await made.alice.connect(made.bob.peer_id)
            await eventually(lambda: made.relaying.peers.get(made.bob.peer_id).agent == EVIL)
            yield made


class TestStatus:
    @aio
    async def test_it_says_what_happened(self) -> None:
        async with scene() as at:
            await at.carry(100_000)
            status = (await get(at.status, "/status.json")).json()
            assert status["peer"] == str(at.relaying.peer_id)
            assert status["version"] == flare.__version__
            assert status["addrs"] == [str(addr) for addr in at.relaying.full_addrs]
            assert status["health"] == {"ok": True, "reasons": []}
            assert status["connections"] == 2
            told = status["relay"]
            assert (told["reservations"], told["reservations_opened"]) == (2, 2)
            assert (told["circuits"], told["circuits_opened"], told["max_circuits"]) == (1, 1, None)
            assert told["bytes"] > 200_000
            assert told["refusals"] == []
            (circuit,) = told["longest"]
            assert (circuit["source"], circuit["target"]) == (str(at.alice.peer_id), str(at.bob.peer_id))
            assert circuit["bytes"] == told["bytes"]
            assert 0 <= circuit["age"] < 60
            assert {talker["peer"] for talker in told["talkers"]} == {circuit["source"], circuit["target"]}
            for talker in told["talkers"]:
                assert talker["circuits"] == 1
                assert min(talker["sent"], talker["received"]) > 100_000
            process = status["process"]
            assert process["memory"] > 1_000_000
            assert process["cpu_seconds"] > 0

    @aio
    async def test_closed_circuits_still_count(self) -> None:
        async with scene() as at:
            await at.carry(50_000)
            before = (await get(at.status, "/status.json")).json()["relay"]
            await at.connection.close()
            await eventually(lambda: at.server.circuits == 0)
            after = (await get(at.status, "/status.json")).json()["relay"]
            assert after["circuits"] == 0
            assert after["longest"] == []
            assert after["bytes"] >= before["bytes"]
            assert [talker["circuits"] for talker in after["talkers"]] == [0, 0]
            assert sum(talker["sent"] for talker in after["talkers"]) == after["bytes"]

    @aio
    async def test_refusals_have_their_reason(self) -> None:
        async with scene() as at:
            nobody = flare.Identity.generate().peer_id
            for _ in range(2):
                with pytest.raises(DialFailed):
                    await at.alice.connect(at.relaying.full_addrs[0] / f"/p2p-circuit/p2p/{nobody}")
            told = (await get(at.status, "/status.json")).json()["relay"]["refusals"]
            assert told == [{"request": "connect", "reason": "no_reservation", "count": 2}]

    @aio
    async def test_the_first_look_sees_rates(self) -> None:
        async with scene() as at:

            async def pump() -> None:
                while True:
                    await at.carry(50_000)

            pumping = asyncio.create_task(pump())
            while not (told := (await get(at.status, "/status.json")).json()["relay"])["rate"]:
                pass  # a machine so busy that nothing moved
            pumping.cancel()
            of_peers = sum(talker["rate"] for talker in told["talkers"])
            assert of_peers == pytest.approx(2 * told["rate"], rel=0.1), "each byte has two ends"
            assert told["longest"][0]["rate"] == pytest.approx(told["rate"], rel=0.1)

    @aio
    async def test_a_host_without_a_relay(self) -> None:
        async with host() as plain, watching(plain) as status:
            assert (await get(status, "/status.json")).json()["relay"] is None
            page = (await get(status, "/")).text
            assert "<b>flare</b> host" in page
            assert "Reservations" not in page
            assert "libp2p_relaysvc_status 0.0" in (await get(status, "/metrics")).text
            assert (await get(status, "/healthz")).status == 200


class TestPage:
    @aio
    async def test_what_peers_say_is_escaped(self) -> None:
        async with scene() as at:
            await at.carry(1_000)
            page = await get(at.status, "/")
            assert page.headers["Content-Type"] == "text/html; charset=utf-8"
            assert "<script>alert" not in page.text
            assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
            assert "\x1b" not in page.text
            assert "\u202e" not in page.text
            assert str(at.bob.peer_id) in page.text
            assert "Top talkers" in page.text

    @aio
    async def test_nothing_but_its_own_style_and_script_may_run(self) -> None:
        async with host() as plain, watching(plain) as status:
            page, again = await get(status, "/"), await get(status, "/")
            policy = page.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; ")
            assert "unsafe" not in policy
            (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
            assert len(nonce) >= 16
            assert nonce not in again.text, "each answer has its own"
            assert page.text.count("<script") == page.text.count(f'<script nonce="{nonce}"') == 1
            assert page.text.count("<style") == page.text.count(f'<style nonce="{nonce}"') == 1
            assert " style=" not in page.text
            assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:)?//", page.text), (
                "nothing of others"
            )


class TestHealth:
    @aio
    async def test_ok(self) -> None:
        async with host() as plain, watching(plain) as status:
            answer = await get(status, "/healthz")
            assert answer.status == 200
            assert answer.json() == {"status": "ok", "reasons": []}

    @aio
    async def test_draining(self) -> None:
        async with relay() as (_, server), watching(server) as status:
            await server.drain()
            answer = await get(status, "/healthz")
            assert answer.status == 503
            assert answer.json() == {
                "status": "unavailable",
                "reasons": ["the relay is draining: it takes no new reservations"],
            }
            assert "draining" in (await get(status, "/")).text
            assert "flare_relay_draining 1.0" in (await get(status, "/metrics")).text

    @aio
    async def test_a_relay_that_has_stopped(self) -> None:
        async with host() as relaying:
            server = flare.RelayServer(relaying)
            async with watching(server) as status:
                assert (await get(status, "/healthz")).json()["reasons"] == ["the relay has stopped"]
                async with server:
                    assert (await get(status, "/healthz")).status == 200
                assert (await get(status, "/healthz")).status == 503
                assert (await get(status, "/status.json")).json()["relay"] is None

    @aio
    async def test_a_loop_that_lags(self) -> None:
        limits = flare.StatusLimits(max_lag=0.3)
        async with host() as plain, flare.StatusServer(plain, ANYWHERE, limits=limits) as status:
            time.sleep(1.5)  # noqa: ASYNC251 - what a callback must not do
            await asyncio.sleep(0.05)
            answer = await get(status, "/healthz")
            assert answer.status == 503
            assert "late within the last ten seconds" in answer.json()["reasons"][0]


class TestServing:
    @aio
    async def test_unknown_paths_are_told_the_known_ones(self) -> None:
        async with host() as plain, watching(plain) as status:
            answer = await get(status, "/favicon.ico")
            assert answer.status == 404
            assert answer.text == "here are /, /status.json, /healthz, /metrics\n"

    @aio
    async def test_head(self) -> None:
        async with host() as plain, watching(plain) as status:
            answer = await get(status, "/healthz", method="HEAD")
            assert (answer.status, answer.body) == (200, b"")

    @aio
    async def test_names_are_refused_but_those_given(self) -> None:
        async with (
            host() as plain,
            flare.StatusServer(plain, ANYWHERE, names=["Relay.internal"]) as status,
        ):
            assert (await get(status, "/", host="evil.example")).status == 421
            assert (await get(status, "/", host="relay.internal:9100")).status == 200

    @aio
    async def test_it_ends_with_its_block(self) -> None:
        async with host() as plain:
            async with watching(plain) as status:
                with pytest.raises(flare.UsageError, match="running already"):
                    await status.__aenter__()
                assert status.url == f"http://{status.address}/"
            with pytest.raises(OSError, match=r".*"):
                await raw(status, b"")

    @aio
    async def test_without_prometheus_client_the_rest_is_served(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "prometheus_client"]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, "flare.watch.metrics", raising=False)
        async with host() as plain, watching(plain) as status:
            assert not status.has_metrics
            answer = await get(status, "/metrics")
            assert answer.status == 501
            assert "pip install prometheus-client" in answer.text
            assert (await get(status, "/")).status == 200


def test_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(watcher, "open", missing, raising=False)
    monkeypatch.setattr(watcher.os, "stat", missing)
    assert watcher.memory() > 1_000_000
    assert watcher.descriptors() is None
