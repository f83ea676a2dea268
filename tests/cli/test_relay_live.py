"""flare relay while it runs: SIGHUP, SIGTERM with circuits, and its configuration."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

import flare
from flare.errors import RelayRefused
from flare.protocols.relay.connect import connect
from flare.protocols.relay.reserve import reserve
from tests.cli.command import LOOPBACK, TIMEOUT, Command, running
from tests.support.aio import aio
from tests.support.relay_scene import Scene

BEGIN = f'listen = ["{LOOPBACK}"]\nidentity = "relay.key"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "relay.toml"
    say(path, "")
    return path


def say(file: Path, more: str) -> None:
    """The file as it began, and `more`."""
    file.write_text(BEGIN + more)


async def fact(command: Command, name: str) -> dict[str, object]:
    return await asyncio.to_thread(command.fact, name)


class Peers:
    """Two peers of a relay that is a process of its own, and a circuit between them."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.addrs: list[str] = command.fact("listening")["addrs"]

    async def __aenter__(self) -> Peers:
        self.stack = contextlib.AsyncExitStack()
        self.scene = Scene(self.stack, [flare.Multiaddr(addr) for addr in self.addrs])
        self.target, self.source = await self.scene.reserved(), await self.scene.peer()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stack.aclose()

    async def circuit(self) -> flare.Stream:
        return await self.scene.circuit(self.source, self.target)


@aio
async def test_sighup_reads_the_file_again(file: Path) -> None:
    with running("relay", "--config", str(file), "--json") as relay:
        async with Peers(relay) as peers:
            running_on = await peers.circuit()
            say(file, "threads = 1\n[circuits]\nmax = 1\n")
            relay.signal(signal.SIGHUP)
            assert (await fact(relay, "reloaded"))["restart"] == ["threads"]
            with pytest.raises(RelayRefused, match="resource limit exceeded"):
                await peers.circuit()
            await running_on.write(b"x")
            assert await running_on.read() == b"x", "what runs stays"
            say(file, f'[access]\ndeny = ["{peers.target.local_peer}"]\n')
            relay.signal(signal.SIGHUP)
            assert (await fact(relay, "reloaded"))["restart"] == []
            assert (await fact(relay, "circuit-closed"))["reason"] == "cancelled"
            with pytest.raises(RelayRefused, match="permission denied"):
                await reserve(peers.target)


@aio
async def test_a_bad_file_changes_nothing_and_says_why(file: Path) -> None:
    with running("relay", "--config", str(file), "--json") as relay:
        async with Peers(relay) as peers:
            say(file, "[circuits]\nmax = 'many'\n")
            relay.signal(signal.SIGHUP)
            assert (await fact(relay, "reload-failed"))["reason"] == (
                f"{file}: circuits.max: 'many' is not a whole number from 0 to {1 << 31}"
            )
            os.unlink(file)
            relay.signal(signal.SIGHUP)
            assert "No such file" in str((await fact(relay, "reload-failed"))["reason"])
            await peers.circuit()


@aio
async def test_sigterm_lets_circuits_end(file: Path) -> None:
    with running("relay", "--config", str(file), "--json") as relay:
        async with Peers(relay) as peers:
            stream = await peers.circuit()
            relay.signal(signal.SIGTERM)
            assert (await fact(relay, "draining"))["circuits"] == 1
            with pytest.raises(RelayRefused, match="resource limit exceeded"):
                await connect(peers.source, peers.target.local_peer)
            await stream.write(b"the last words")
            assert await stream.read_exactly(14) == b"the last words"
            await stream.close()
            assert (await fact(relay, "drained"))["cut"] == 0
        assert relay.wait() == 0
        assert relay.complaint() == ""


@aio
async def test_sigterm_does_not_wait_longer_than_it_was_told(file: Path) -> None:
    with running("relay", "--config", str(file), "--drain-timeout", "100ms", "--json") as relay:
        async with Peers(relay) as peers:
            stream = await peers.circuit()
            relay.signal(signal.SIGTERM)
            assert (await fact(relay, "drained"))["cut"] == 1
            with pytest.raises(flare.NetworkError):
                await stream.read()
        assert relay.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@aio
async def test_a_second_signal_ends_it_at_once(file: Path, second: signal.Signals) -> None:
    with running("relay", "--config", str(file), "--drain-timeout", "1h", "--json") as relay:
        async with Peers(relay) as peers:
            stream = await peers.circuit()
            relay.signal(signal.SIGTERM)
            await fact(relay, "draining")
            relay.signal(second)
            assert await asyncio.to_thread(relay.process.wait, TIMEOUT) == 130
            with pytest.raises(flare.NetworkError):
                await stream.read()
        assert relay.complaint() == ""


@aio
async def test_sigint_does_not_drain(file: Path) -> None:
    with running("relay", "--config", str(file), "--drain-timeout", "1h", "--json") as relay:
        async with Peers(relay) as peers:
            await peers.circuit()
            relay.signal(signal.SIGINT)
            assert await asyncio.to_thread(relay.process.wait, TIMEOUT) == 0


def test_the_identity_of_the_file_is_kept(file: Path) -> None:
    peers = []
    for _ in range(2):
        with running("relay", "--config", str(file), "--json") as relay:
            peers.append(relay.fact("listening")["peer"])
    assert peers[0] == peers[1]
    assert (file.parent / "relay.key").stat().st_mode & 0o777 == 0o600
