"""AutoRelay in the real command behind a NAT: relays die, the host's address changes, and it is reachable."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path as FilePath
from typing import Any

import pytest

from flare.lab import netlink
from flare.lab.fabric import Path
from flare.lab.world import Lab, Program

pytestmark = pytest.mark.lab

ROOT = FilePath(__file__).parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
FLARE = [sys.executable, "-m", "flare"]
DELAYS = {"near": 0.01, "middle": 0.04, "far": 0.09}  # seconds, one way


class Scene:
    """Three relays and a host that finds them; it holds places on the two that are nearest."""

    def __init__(self, lab: Lab, *, port: str = "tcp/4001", reachable: bool = False) -> None:
        self.lab = lab
        for name, delay in DELAYS.items():
            lab.set_path(name, "host", delay=delay)
            lab.set_path("host", name, delay=delay)
        self.relays = {
            name: lab.spawn(
                name,
                [*FLARE, "relay", "--listen", f"/ip4/{lab.hosts[name].public}/{port}", "--json"],
                env=ENV,
            )
            for name in DELAYS
        }
        assert lab.run(lambda: all(relay.first("listening") for relay in self.relays.values()), 30)
        self.addrs = {name: relay.events[0]["addrs"][0] for name, relay in self.relays.items()}
        self.peers = {name: addr.rpartition("/")[2] for name, addr in self.addrs.items()}
        sources = [word for addr in self.addrs.values() for word in ("--relay-source", addr)]
        listen = f"/ip4/0.0.0.0/{port}"
        self.host = lab.spawn("host", [*FLARE, "listen", *sources, "--listen", listen, "--json"], env=ENV)
        assert lab.run(lambda: len(self.chosen()) >= 2, 30)
        if not reachable:
            assert set(self.chosen()) == {"near", "middle"}

    def of(self, name: str) -> list[dict[str, Any]]:
        """The host's events of that name."""
        return [event for event in self.host.events if event["event"] == name]

    def chosen(self) -> list[str]:
        """The relays that it chose, in order."""
        names = {peer: name for name, peer in self.peers.items()}
        return [names[event["relay"]] for event in self.of("relay-chosen")]

    def after(self, what: Callable[[], object], until: Callable[[list[dict[str, Any]]], bool]) -> float:
        """Seconds from `what` until the events since then satisfy `until`."""
        seen = len(self.host.events)
        began = time.monotonic()
        what()
        assert self.lab.run(lambda: until(self.host.events[seen:]), 60), self.host.events[seen:]
        return time.monotonic() - began

    def silence(self, name: str) -> None:
        """Nothing comes from that relay or gets there any more."""
        for ends in ((name, "host"), ("host", name)):
            self.lab.set_path(*ends, loss=1.0)

    def reached_through(self, name: str) -> bool:
        """Whether a stranger can ping the host through that relay now."""
        peer = self.host.events[0]["peer"]
        target = f"{self.addrs[name]}/p2p-circuit/p2p/{peer}"
        dialler: Program = self.lab.spawn(
            "stranger", [*FLARE, "ping", target, "--count", "1", "--json"], env=ENV
        )
        assert self.lab.run(dialler.done, 30)
        return dialler.process.returncode == 0


def world(kind: str) -> AbstractContextManager[Lab]:
    return Lab({**dict.fromkeys(DELAYS, "none"), "stranger": "none", "host": kind}, default=Path(delay=0.02))


def chose(events: list[dict[str, Any]]) -> bool:
    return any(event["event"] == "relay-chosen" for event in events)


def test_a_relay_that_is_killed_is_replaced_within_seconds() -> None:
    with world("port") as lab:
        scene = Scene(lab)
        assert scene.reached_through("middle")
        seconds = scene.after(lambda: scene.relays["near"].stop(signal.SIGKILL), chose)
        assert scene.chosen()[-1] == "far"
        assert seconds < 20, "5 to 10 s of patience, and the dial"
        assert scene.reached_through("far")
        assert scene.reached_through("middle"), "which was held all the time"
        print(f"killed: another after {seconds:.1f} s")


def test_a_relay_that_falls_silent_is_found_out() -> None:
    with world("port") as lab:
        scene = Scene(lab)
        seconds = scene.after(lambda: scene.silence("near"), chose)
        assert scene.chosen()[-1] == "far"
        print(f"silent: another after {seconds:.1f} s")


@pytest.mark.parametrize("port", ["tcp/4001", "udp/4001/quic-v1"])
def test_a_host_whose_address_changes_is_back(port: str) -> None:
    with world("port") as lab:
        scene = Scene(lab, port=port)
        host = lab.hosts["host"]

        def roam() -> None:
            with host.namespace.entered():
                netlink.remove_address("wan0", f"{host.local}/32")
                netlink.add_address("wan0", "10.77.0.2/32")
                netlink.add_default_route("wan0")

        def back(events: list[dict[str, Any]]) -> bool:
            if "quic" in port:  # its connections move along, and the places with them
                return any(event["event"] == "network" for event in events)
            lost = {event["peer"] for event in events if event["event"] == "connection-lost"}
            reserved = {event["relay"] for event in events if event["event"] == "reserved"}
            return {scene.peers["near"], scene.peers["middle"]} <= lost & reserved

        seconds = scene.after(roam, back)
        network = scene.host.first("network")
        assert network is not None
        assert network["gone"] == [host.local]
        assert any(addr.startswith(f"/ip4/10.77.0.2/{port}") for addr in scene.of("addresses")[-1]["addrs"])
        assert seconds < 20
        assert scene.reached_through("near")
        assert scene.reached_through("middle")
        print(f"another address, {port}: on both relays after {seconds:.1f} s")


def test_a_host_that_strangers_can_dial_gives_its_places_up() -> None:
    with world("none") as lab:
        scene = Scene(lab, reachable=True)
        assert lab.run(lambda: len(scene.of("relay-dropped")) >= 2, 30)
        assert {event["reason"] for event in scene.of("relay-dropped")} == {"others can dial us directly"}
        assert not any("p2p-circuit" in addr for addr in scene.of("addresses")[-1]["addrs"])
