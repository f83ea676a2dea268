"""Port mapping on a real router: Debian's miniupnpd on a kernel NAT of the lab, strangers coming in."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import pytest

from flare.lab.fabric import Path
from flare.lab.upnpd import MiniUpnpd
from flare.lab.world import Lab, Program

pytestmark = pytest.mark.lab

PROGRAM = str(FilePath(__file__).parent / "port_node.py")
ROOT = FilePath(__file__).parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
PROTOCOLS = {
    "PCP": "PCP",
    "NAT-PMP": "NAT-PMP",
    "UPnP": "UPnP IGD 2",
}
SHORT = ("min_lifetime=10", "max_lifetime=86400")  # seconds


class Home:
    """A host behind a home router whose daemon maps ports, a relay that sees it, and a stranger."""

    def __init__(self, lab: Lab, daemon: MiniUpnpd, relay: str) -> None:
        self.lab, self.daemon, self.relay = lab, daemon, relay
        self.public = lab.hosts["host"].public

    def map(self, *arguments: str, relay: bool = True) -> Program:
        relays = [self.relay] if relay else []
        return self.lab.spawn("host", [sys.executable, PROGRAM, "map", *arguments, *relays], env=ENV)

    def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Let time pass until that is so; the lab looks when packets move, and here they may not."""
        end = time.monotonic() + seconds
        while not self.lab.run(holds, 0.1):
            if time.monotonic() > end:
                return False
        return True

    def wait(
        self, program: Program, name: str, number: int = 1, *, seconds: float = 20, **fields: Any
    ) -> dict[str, Any]:
        """The event of that name and these fields, the `number`-th there is."""

        def found() -> list[dict[str, Any]]:
            return [e for e in program.events if e.get("event") == name and fields.items() <= e.items()]

        self.until(lambda: len(found()) >= number or program.done(), seconds)
        names = [event.get("event") for event in program.events]
        assert len(found()) >= number, f"no {name} {number} with {fields} among {names}"
        return found()[number - 1]

    def mapped(self, program: Program, number: int = 1, **fields: Any) -> list[str]:
        """The mapped addresses of TCP and QUIC."""
        events = [
            self.wait(
                program,
                "port-mapped",
                number,
                listener=f"/ip4/{self.lab.hosts['host'].local}/{tail}",
                **fields,
            )
            for tail in ("tcp/4001", "udp/4001/quic-v1")
        ]
        return [event["external"] for event in events]

    def dial(self, peer: str, *addrs: str) -> list[str]:
        """The paths by which a stranger comes to these addresses; empty where it does not."""
        targets = [f"{addr}/p2p/{peer}" for addr in addrs]
        stranger = self.lab.spawn("stranger", [sys.executable, PROGRAM, "dial", *targets], env=ENV)
        assert self.until(stranger.done, 20 + 12 * len(addrs))
        return [event["path"] for event in stranger.events if event["event"] == "dialled"]

    def end(self, program: Program) -> None:
        program.process.terminate()
        assert self.until(program.done, 10)

    def forwards(self) -> bool:
        return "dnat" in self.daemon.rules()


@contextmanager
def home(*options: str, kind: str = "port", stranger: str = "none") -> Iterator[Home]:
    hosts = {"host": kind, "relay": "none", "stranger": stranger}
    with (
        Lab(hosts, make="kernel", default=Path(delay=0.01)) as lab,
        MiniUpnpd(lab.hosts["host"].routers[0], *SHORT, *options) as daemon,
    ):
        public = lab.hosts["relay"].public
        relay = lab.spawn("relay", [sys.executable, PROGRAM, "server", public], env=ENV)
        assert lab.run(lambda: relay.first("up") is not None, 30)
        yield Home(lab, daemon, relay.events[0]["addr"])


@pytest.mark.parametrize("only", PROTOCOLS)
def test_each_protocol_maps_and_strangers_come_in_and_it_is_renewed_and_given_back(only: str) -> None:
    with home() as scene:
        host = scene.map("--only", only, "--lifetime", "10")
        peer = scene.wait(host, "up")["peer"]
        addrs = scene.mapped(host, protocol=PROTOCOLS[only])
        assert addrs == [f"/ip4/{scene.public}/tcp/4001", f"/ip4/{scene.public}/udp/4001/quic-v1"]
        assert scene.forwards()
        assert scene.dial(peer, *addrs) == ["direct/tcp", "direct/quic-v1"]
        assert scene.mapped(host, 2, protocol=PROTOCOLS[only]) == addrs, "renewed at half life"
        assert scene.mapped(host, 3, protocol=PROTOCOLS[only]) == addrs
        assert not host.first("port-mapping-lost")
        scene.end(host)
        assert host.first("closed")
        assert not scene.forwards(), "nothing stays on the router"


def test_igd_1() -> None:
    with home("force_igd_desc_v1=yes") as scene:
        host = scene.map("--only", "UPnP")
        scene.mapped(host, protocol="UPnP IGD 1")
        assert scene.forwards()
        scene.end(host)
        assert not scene.forwards()


def test_the_best_of_all_three_maps() -> None:
    with home() as scene:
        host = scene.map()
        scene.mapped(host, protocol="PCP")
        scene.end(host)
        assert not scene.forwards()


@pytest.mark.parametrize(
    ("options", "protocol"), [(("enable_upnp=no",), "PCP"), (("enable_natpmp=no",), "UPnP IGD 2")]
)
def test_with_what_the_router_has(options: tuple[str, ...], protocol: str) -> None:
    with home(*options) as scene:
        scene.mapped(scene.map(), protocol=protocol)


def test_what_is_mapped_is_told_once_somebody_sees_us_at_that_ip() -> None:
    with home() as scene:
        host = scene.map()
        addrs = scene.mapped(host)
        scene.until(lambda: set(addrs) <= set(host.events[-1].get("told", ())), 10)
        assert set(addrs) <= set(host.events[-1]["told"])


def test_autonat_finds_the_mapped_address_public() -> None:
    with home() as scene:
        host = scene.map("--autonat")
        scene.wait(
            host, "address-reachability", addr=f"/ip4/{scene.public}/tcp/4001", state="public", seconds=30
        )
        scene.wait(host, "reachability-changed", state="public")


def test_a_router_that_learns_to_map_ports_later_makes_a_private_host_public() -> None:
    with home() as scene:
        scene.daemon.stop()
        host = scene.map("--autonat")
        addr = f"/ip4/{scene.public}/udp/4001/quic-v1"  # where the relay sees it
        scene.wait(host, "address-reachability", addr=addr, state="private", seconds=40)
        scene.daemon.start()
        scene.mapped(host)
        scene.wait(host, "address-reachability", addr=addr, state="public", seconds=40)
        scene.wait(host, "reachability-changed", state="public")


@pytest.mark.parametrize("only", PROTOCOLS)
def test_a_daemon_that_restarts_is_asked_again(only: str) -> None:
    with home() as scene:
        # PCP and NAT-PMP hear it announce itself; for UPnP the mapping is looked at every few seconds
        host = scene.map("--only", only, *(("--verify", "5") if only == "UPnP" else ()))
        scene.mapped(host)
        scene.daemon.stop()
        assert not scene.forwards()
        scene.daemon.start()
        assert scene.until(scene.forwards, 40), host.events


def test_double_nat_that_the_router_hides() -> None:
    with home("ext_ip=105.9.9.9", kind="cgn") as scene:
        host = scene.map()
        found = scene.wait(host, "double-nat-found")
        assert f"others see us at {scene.public}" in found["reason"]
        assert found["external"] == "105.9.9.9"
        told = {addr for event in host.events for addr in event.get("told", ())}
        assert not any("105.9.9.9" in addr for addr in told)


def test_double_nat_that_the_router_knows_of() -> None:
    with home(kind="cgn") as scene:
        host = scene.map()
        scene.wait(host, "port-mapping-failed")  # miniupnpd maps nothing at such an address, nor tells it
        scene.wait(host, "double-nat-found", external="0.0.0.0")

        def reason() -> str:
            return [e["reason"] for e in host.events if e["event"] == "double-nat-found"][-1]

        # at first it may only be seen that the router has none, and then that others see us all the same
        assert scene.until(lambda: reason().startswith("double NAT: "), 40), reason()
        assert "the router has no address on the internet itself" in reason()
        assert f"yet others see us at {scene.public}" in reason()
        assert not scene.forwards()


def test_no_daemon_at_all() -> None:
    with home() as scene:
        scene.daemon.stop()
        host = scene.map()
        failed = scene.wait(host, "port-mapping-failed", seconds=30)
        assert failed["reason"].startswith("the router at 10.1.0.1 maps no ports: PCP: nobody listens")
        assert scene.wait(host, "reservation-accepted"), "which kept it from nothing"


def test_the_command() -> None:
    with home() as scene:
        flare = [sys.executable, "-m", "flare"]
        listen = ["--listen", "/ip4/0.0.0.0/tcp/4001", "--listen", "/ip4/0.0.0.0/udp/4001/quic-v1"]
        host = scene.lab.spawn("host", [*flare, "listen", *listen, "--map-ports", "--json"], env=ENV)
        peer = scene.wait(host, "listening")["peer"]
        addr = scene.mapped(host, protocol="PCP")[0]
        ping = [*flare, "ping", f"{addr}/p2p/{peer}", "--count", "1", "--json"]
        stranger = scene.lab.spawn("stranger", ping, env=ENV)
        assert scene.until(stranger.done, 30)
        assert stranger.process.returncode == 0
        scene.end(host)
        assert host.process.returncode == 0
        assert not scene.forwards()


def test_a_relay_at_home() -> None:
    with home() as scene:
        flare = [sys.executable, "-m", "flare"]
        at_home = [*flare, "relay", "--listen", "/ip4/0.0.0.0/tcp/4001", "--map-ports", "--json"]
        relay = scene.lab.spawn("host", at_home, env=ENV)
        peer = scene.wait(relay, "listening")["peer"]
        external = scene.wait(relay, "port-mapped")["external"]
        listen = [*flare, "listen", "--relay", f"{external}/p2p/{peer}", "--json"]
        stranger = scene.lab.spawn("stranger", listen, env=ENV)
        reserved = scene.wait(stranger, "reserved")
        assert any(addr.startswith(f"{external}/p2p/{peer}/p2p-circuit") for addr in reserved["addrs"])


def test_two_that_no_hole_punch_joins_go_direct() -> None:
    """Both behind NATs that map by destination, at random: with a mapped port one of them can be dialled."""
    with home(kind="sym", stranger="sym") as scene:
        flare = [sys.executable, "-m", "flare"]
        listen = [*flare, "listen", "--relay", scene.relay, "--map-ports", "--json"]
        host = scene.lab.spawn("host", listen, env=ENV)
        scene.wait(host, "port-mapped", 2)
        circuit = scene.wait(host, "reserved")["addrs"][0]
        scene.until(lambda: False, 1.0)  # the relay has seen us by then: the address is told
        stranger = scene.lab.spawn(
            "stranger", [*flare, "ping", circuit, "--timeout", "20", "--json"], env=ENV
        )
        assert scene.wait(stranger, "direct", seconds=30)["path"].startswith("direct/")
