"""miniupnpd, the daemon of real home routers, on a kernel router of the lab: PCP, NAT-PMP and UPnP."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from flare.lab.kernel import nft_command
from flare.lab.namespace import LabUnavailable, Namespace

HTTP_PORT = 5000
_CHAINS = ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd")

# miniupnpd enters what it maps into the last three chains. The lab's own table drops what comes in unasked
# before any other table is asked: what miniupnpd forwards has to be let past it.
_TABLES = """
table inet filter {
  chain forward { type filter hook forward priority 0; policy accept; jump miniupnpd; IPV6 }
  chain prerouting { type nat hook prerouting priority dstnat; policy accept; jump prerouting_miniupnpd; }
  chain postrouting { type nat hook postrouting priority srcnat; policy accept; jump postrouting_miniupnpd; }
  chain miniupnpd { }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
"""
_ADMIT = 'insert rule ip lab forward iifname "wan0" ct status dnat accept\n'
_GUARD = """
    meta nfproto ipv6 iifname != "lan0" ct state established,related accept;
    meta nfproto ipv6 iifname != "lan0" meta l4proto { tcp, udp } drop;
"""


def command() -> str:
    """The path of miniupnpd; LabUnavailable when there is none, or one for another firewall."""
    found = shutil.which("miniupnpd") or shutil.which("miniupnpd", path="/usr/sbin:/sbin")
    if found is None:
        raise LabUnavailable("the lab's home router needs miniupnpd: install miniupnpd-nftables")
    return found


class MiniUpnpd:
    """`with MiniUpnpd(router) as daemon` runs it in a router's namespace, between `lan0` and `wan0`.

    `options` go into its configuration as they are, `min_lifetime=10`, in place of the defaults. With `ipv6`
    the router is a firewall for IPv6 too, which lets nothing in but answers and what has a pinhole.
    """

    def __init__(self, router: Namespace, *options: str, ipv6: bool = False) -> None:
        self._router = router
        self._options = options
        self._ipv6 = ipv6
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = contextlib.ExitStack()

    def __enter__(self) -> Self:
        rules = _TABLES.replace("IPV6", _GUARD if self._ipv6 else "")
        self._router.run([nft_command(), "-f", "-"], stdin=rules + _ADMIT)
        folder = Path(self._folder.enter_context(tempfile.TemporaryDirectory()))
        self._configuration = folder / "miniupnpd.conf"
        self._pid = folder / "pid"
        self.log = folder / "log"
        said = {option.partition("=")[0] for option in self._options}
        defaults = [line for line in self._defaults() if line.partition("=")[0] not in said]
        self._configuration.write_text("\n".join([*defaults, *self._options, ""]))
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.close()

    def start(self) -> None:
        """Start it, as when the router is switched on."""
        arguments = [command(), "-d", "-f", str(self._configuration), "-P", str(self._pid)]
        with self.log.open("ab") as log:
            self._process = self._router.spawn(arguments, stdout=log, stderr=log)

    def stop(self) -> None:
        """End it, and let the router forget what it forwarded, as when it is switched off."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            flush = "".join(f"flush chain inet filter {chain}\n" for chain in _CHAINS)
            self._router.run([nft_command(), "-f", "-"], stdin=flush)

    def rules(self) -> str:
        """What it forwards now, as nft lists it."""
        listed = [
            self._router.run([nft_command(), "list", "chain", "inet", "filter", chain]) for chain in _CHAINS
        ]
        return "\n".join(listed)

    def _defaults(self) -> Iterator[str]:
        yield from (
            "ext_ifname=wan0",
            "listening_ip=lan0",
            f"http_port={HTTP_PORT}",
            "enable_natpmp=yes",
            "enable_upnp=yes",
            "secure_mode=yes",
            "system_uptime=no",
            "upnp_table_name=filter",
            "upnp_nat_table_name=filter",
            "uuid=00000000-0000-0000-0000-00000000f1a2",
            f"ipv6_disable={'no' if self._ipv6 else 'yes'}",
            "allow 1024-65535 10.0.0.0/8 1024-65535",
            "deny 0-65535 0.0.0.0/0 0-65535",
        )
