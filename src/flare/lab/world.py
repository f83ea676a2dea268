"""A small world: named hosts, each behind a NAT of some kind, joined by one internet.

with Lab({"relay": "none", "a": "port", "b": "sym"}, default=Path(delay=0.02)) as lab:
    program = lab.spawn("a", ["python3", "probe.py"])
    lab.run(program.done, timeout=10)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

from flare.errors import UsageError
from flare.lab import kernel, netlink
from flare.lab.fabric import Fabric, Path
from flare.lab.internet import Internet, Site
from flare.lab.kinds import KINDS, Kind
from flare.lab.namespace import Namespace
from flare.lab.nat import Nat
from flare.lab.packet import address
from flare.lab.trace import Tracer

Make = Literal["user", "kernel"]
_MTU = 1500


@dataclass(frozen=True, slots=True)
class Host:
    """One host. `public` is where the internet sees it, `local` its own address: the same without NAT.

    `routers` are the kernel's before it, from the inside out.
    """

    name: str
    kind: Kind
    namespace: Namespace
    public: str
    local: str
    routers: tuple[Namespace, ...] = ()


class Program:
    """A program on a host: the `lines` of its standard output, of which the JSON objects are `events`."""

    def __init__(
        self, host: str, process: subprocess.Popen[bytes], on_event: Callable[[dict[str, Any]], None]
    ) -> None:
        self.host = host
        self.process = process
        self.lines: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.output_ended = False
        self._on_event = on_event
        self._partial = b""

    def feed(self, data: bytes) -> None:
        """Take what it printed."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self.lines.append(line.decode(errors="replace"))
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                self.events.append(event)
                self._on_event(event)

    def first(self, *names: str) -> dict[str, Any] | None:
        """The first event of one of these names so far."""
        return next((event for event in self.events if event.get("event") in names), None)

    def done(self) -> bool:
        """Whether it has ended and all it printed was read."""
        return self.output_ended and self.process.poll() is not None

    def stop(self, sign: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(sign)


class Lab:
    """Builds the world on entering, and takes everything down on leaving, whatever happened in between."""

    def __init__(
        self,
        hosts: Mapping[str, str],
        *,
        make: Make = "user",
        default: Path | None = None,
        tracer: Tracer | None = None,
        seed: int = 0,
    ) -> None:
        for kind in hosts.values():
            if kind not in KINDS:
                raise UsageError(f"no NAT of kind {kind!r}: choose from {', '.join(KINDS)}")
        self._wanted = dict(hosts)
        self._make = make
        self._seed = seed
        self._stack = ExitStack()
        self._programs: list[Program] = []
        self.hosts: dict[str, Host] = {}
        self.fabric = Fabric(default, seed)
        self.internet = Internet(self.fabric, tracer)

    def __enter__(self) -> Lab:
        with ExitStack() as building:
            building.callback(self.internet.close)
            nft = kernel.nft_command() if self._make == "kernel" else ""
            for index, (name, kind) in enumerate(self._wanted.items(), start=1):
                self._build(building, index, name, KINDS[kind], nft)
            building.callback(self._end_programs)
            self._stack = building.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def set_path(self, src: str, dst: str, **changes: float) -> None:
        """Change fields of the path from one host's public address to another's, one direction."""
        ends = (address(self.hosts[src].public), address(self.hosts[dst].public))
        self.fabric.set_path(*ends, replace(self.fabric.path(*ends), **changes))  # type: ignore[arg-type]

    def spawn(
        self,
        host: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        on_event: Callable[[dict[str, Any]], None] = lambda event: None,
        stderr: int | None = None,
    ) -> Program:
        """Start a program on a host; OSError when it cannot be started."""
        process = self.hosts[host].namespace.spawn(argv, env=env, stderr=stderr)
        program = Program(host, process, on_event)
        self._programs.append(program)
        assert process.stdout is not None
        out = process.stdout.fileno()
        os.set_blocking(out, False)

        def read() -> None:
            try:
                data = os.read(out, 65536)
            except BlockingIOError:
                return
            if data:
                program.feed(data)
            else:
                program.output_ended = True
                self.internet.unwatch(out)

        self.internet.watch(out, read)
        return program

    def run(self, until: Callable[[], bool], timeout: float) -> bool:
        """Let time pass until `until()` holds, at most `timeout` seconds; whether it holds."""
        return self.internet.run(until, timeout)

    # --- building

    def _build(self, stack: ExitStack, index: int, name: str, kind: Kind, nft: str) -> None:
        public = f"{100 + index}.1.0.1"
        namespace = self._namespace(stack)
        if not kind.routers:
            self._site(stack, name, namespace, public, public, [])
            self.hosts[name] = Host(name, kind, namespace, public, public)
            return
        # The networks between routers, from the inside out: each router's inner gateway and outer address.
        gateways = [f"10.{index}.0.1", *(f"100.64.{index}.{4 * n + 1}" for n in range(len(kind.routers) - 1))]
        outer = [*(f"100.64.{index}.{4 * n + 2}" for n in range(len(kind.routers) - 1)), public]
        local = f"10.{index}.0.2"
        routers: tuple[Namespace, ...] = ()
        if self._make == "user":
            nats = [
                Nat(config, address(wan), address(lan), seed=self._seed * 1000 + index * 10 + n)
                for n, (config, wan, lan) in enumerate(zip(kind.routers, outer, gateways, strict=True))
            ]
            self._site(stack, name, namespace, local, public, nats)
        else:
            routers = self._kernel_routers(stack, name, kind, namespace, local, gateways, outer, nft)
        self.hosts[name] = Host(name, kind, namespace, public, local, routers)

    def _namespace(self, stack: ExitStack) -> Namespace:
        namespace = Namespace()
        stack.callback(namespace.close)
        with namespace.entered():
            netlink.set_up("lo")
        return namespace

    def _site(
        self, stack: ExitStack, name: str, namespace: Namespace, local: str, public: str, nats: list[Nat]
    ) -> None:
        """Give the namespace the TUN behind which the internet begins."""
        fd = namespace.open_tun("wan0")
        stack.callback(os.close, fd)
        with namespace.entered():
            netlink.set_up("wan0", _MTU)
            netlink.add_address("wan0", f"{local}/32")
            netlink.add_default_route("wan0")
        self.internet.attach(Site(name, fd, address(public), nats))

    def _kernel_routers(
        self, stack: ExitStack, name: str, kind: Kind, host: Namespace, local: str,
        gateways: list[str], outer: list[str], nft: str,
    ) -> tuple[Namespace, ...]:  # fmt: skip
        """Routers in namespaces of their own, cabled from the host outwards; the last one has the TUN."""
        routers: list[Namespace] = []
        inner, inner_interface, inner_address = host, "eth0", local
        for n, config in enumerate(kind.routers):
            router = self._namespace(stack)
            with router.entered():
                netlink.add_veth("lan0", inner_interface, inner.fileno())
                netlink.set_up("lan0", _MTU)
                netlink.add_address("lan0", f"{gateways[n]}/{24 if n == 0 else 30}")
            with inner.entered():
                netlink.set_up(inner_interface, _MTU)
                netlink.add_address(inner_interface, f"{inner_address}/{24 if n == 0 else 30}")
                netlink.add_default_route(inner_interface, gateways[n])
            router.sysctl("net/ipv4/ip_forward", 1)
            router.run([nft, "-f", "-"], stdin=kernel.ruleset(config, outer[n]))
            for setting, value in kernel.sysctls(config).items():
                router.sysctl(setting, value)
            inner, inner_interface, inner_address = router, "wan0", outer[n]
            routers.append(router)
        self._site(stack, name, inner, outer[-1], outer[-1], [])
        return tuple(routers)

    def _end_programs(self) -> None:
        """SIGTERM, two seconds to obey with the network still up, then SIGKILL."""
        for program in self._programs:
            program.stop(signal.SIGTERM)
        self.internet.run(lambda: all(p.process.poll() is not None for p in self._programs), 2.0)
        for program in self._programs:
            program.stop(signal.SIGKILL)
            program.process.wait()
            if program.process.stdout is not None:
                program.process.stdout.close()
