"""UPnP's routers: where their services are, what they are asked, and what they answer. No I/O.

InternetGatewayDevice:1 and :2: WANIPConnection:1 and :2, WANPPPConnection:1, WANIPv6FirewallControl:1.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Final
from urllib.parse import urljoin, urlsplit

from flare.errors import DecodeError
from flare.wire.xml_tree import Element, parse

CONNECTIONS: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
FIREWALL: Final = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
MAX_SERVICES: Final = 64  # of one description: defends whoever asks them all
MAX_URL: Final = 2048  # characters

INVALID_ACTION: Final = 401
INVALID_ARGUMENTS: Final = 402
NOT_AUTHORIZED: Final = 606
NO_SUCH_PINHOLE: Final = 704
NO_SUCH_ENTRY: Final = 714
CONFLICT: Final = 718
SAME_PORTS_REQUIRED: Final = 724
ONLY_PERMANENT: Final = 725

ERRORS: Final = {
    INVALID_ACTION: "invalid action",
    INVALID_ARGUMENTS: "invalid arguments",
    403: "out of sync",
    501: "the action failed",
    600: "an argument's value is invalid",
    602: "not implemented",
    603: "out of memory",
    605: "a text argument is too long",
    NOT_AUTHORIZED: "not authorized",
    702: "the firewall is switched off",
    703: "it lets nobody open pinholes",
    NO_SUCH_PINHOLE: "no such pinhole",
    705: "the protocol is not supported",
    708: "no wildcard allowed in the source address",
    NO_SUCH_ENTRY: "no such mapping",
    715: "no wildcard allowed in the source address",
    716: "no wildcard allowed in the external port",
    CONFLICT: "the port is mapped to somebody else",
    SAME_PORTS_REQUIRED: "internal and external port must be the same",
    ONLY_PERMANENT: "only permanent mappings are supported",
    726: "the remote host must be a wildcard",
    727: "the external port must be a wildcard",
    728: "no more mappings",
    729: "the port is taken by another mechanism of the router",
    732: "no wildcard allowed in the internal port",
}


@dataclass(frozen=True, slots=True)
class Service:
    """A service of a device, and the absolute URL at which its actions are called."""

    kind: str
    control: str

    @property
    def version(self) -> int:
        """The number at the end of its kind."""
        return int(self.kind.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Fault:
    """A device said no. `code` is UPnP's, or 0 when the fault names none."""

    code: int
    description: str

    @property
    def sentence(self) -> str:
        """What it said, in our words where the code is known."""
        return ERRORS.get(self.code) or self.description or "a fault without a reason"


@dataclass(frozen=True, slots=True)
class Entry:
    """What GetSpecificPortMappingEntry tells of a mapping."""

    client: str
    port: int
    enabled: bool
    lifetime: int


def services(description: bytes, location: str) -> tuple[Service, ...]:
    """Those services of a description that port mapping needs. DecodeError.

    URLs are made absolute with URLBase, or with the `location` of the description.
    """
    root = parse(description)
    if root.name != "root":
        raise DecodeError(f"a document of {root.name[:40]!r}, not a description", protocol="upnp")
    base = root.value("URLBase") or location
    found = []
    for element in root.walk():
        if element.name != "service":
            continue
        kind, control = element.value("serviceType"), element.value("controlURL")
        if kind in (*CONNECTIONS, FIREWALL) and control:
            found.append(Service(kind, _absolute(base, control)))
        if len(found) >= MAX_SERVICES:
            break
    return tuple(found)


def encode_call(kind: str, action: str, arguments: Mapping[str, object]) -> tuple[dict[str, str], bytes]:
    """Fields and body of the POST that calls `action` of a service (UPnP Device Architecture 2.0, 3.2.1)."""
    inside = "".join(
        f"<{name}>{escape(str(value), quote=False)}</{name}>" for name, value in arguments.items()
    )
    body = (
        '<?xml version="1.0"?>\r\n'
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
        f'<s:Body><u:{action} xmlns:u="{kind}">{inside}</u:{action}></s:Body></s:Envelope>\r\n'
    ).encode()
    return {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{kind}#{action}"'}, body


def decode_answer(body: bytes, action: str) -> dict[str, str] | Fault:
    """The out arguments of `action`, or the fault (3.2.2, 3.2.4). DecodeError."""
    root = parse(body)
    inside = root.child("Body") if root.name == "Envelope" else None
    if inside is None:
        raise DecodeError("no SOAP envelope with a body", protocol="upnp")
    fault = inside.child("Fault")
    if fault is not None:
        return _fault(fault)
    answer = inside.child(f"{action}Response")
    if answer is None:
        raise DecodeError(f"no answer to {action}", protocol="upnp")
    return {child.name: child.text.strip() for child in answer.children}


def external_address(answer: Mapping[str, str]) -> ipaddress.IPv4Address:
    """What GetExternalIPAddress told; 0.0.0.0 where the router has none. DecodeError."""
    text = answer.get("NewExternalIPAddress", "")
    try:
        return ipaddress.IPv4Address(text or "0.0.0.0")
    except ValueError:
        raise DecodeError(f"{text[:80]!r} is no IPv4 address", protocol="upnp") from None


def reserved_port(answer: Mapping[str, str]) -> int:
    """The external port that AddAnyPortMapping chose. DecodeError."""
    return number(answer, "NewReservedPort", 1, 0xFFFF)


def entry(answer: Mapping[str, str]) -> Entry:
    """What GetSpecificPortMappingEntry told. DecodeError."""
    return Entry(
        answer.get("NewInternalClient", "").strip(),
        number(answer, "NewInternalPort", 0, 0xFFFF),
        answer.get("NewEnabled", "").lower() in ("1", "true", "yes"),
        number(answer, "NewLeaseDuration", 0, 0xFFFF_FFFF),
    )


def number(answer: Mapping[str, str], name: str, least: int, most: int) -> int:
    """A whole number among an action's out arguments. DecodeError."""
    text = answer.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and least <= int(text) <= most):
        raise DecodeError(f"{name} is {text[:40]!r}, not a number from {least} to {most}", protocol="upnp")
    return int(text)


def _fault(fault: Element) -> Fault:
    told = fault.find("UPnPError")
    code = told.value("errorCode") if told is not None else ""
    words = told.value("errorDescription") if told is not None else fault.value("faultstring")
    known = code.isascii() and code.isdecimal() and len(code) <= 9
    return Fault(int(code) if known else 0, "".join(filter(str.isprintable, words))[:120])


def _absolute(base: str, control: str) -> str:
    try:
        url = urljoin(base, control)
        urlsplit(url)
    except ValueError as error:
        raise DecodeError(f"{control[:80]!r} is no URL: {error}", protocol="upnp") from None
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise DecodeError(f"{url[:80]!r} is no URL", protocol="upnp")
    return url
