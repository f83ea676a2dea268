"""UPnP's descriptions, calls and answers (UPnP Device Architecture 2.0, IGD 1 and 2)."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.errors import DecodeError
from flare.wire import upnp
from flare.wire.upnp import Entry, Fault, Service
from flare.wire.xml_tree import parse

LOCATION = "http://10.0.0.1:5000/desc/root.xml"
WANIP1, WANIP2 = upnp.CONNECTIONS[1], upnp.CONNECTIONS[0]


def description(*services: tuple[str, str], base: str = "") -> bytes:
    listed = "".join(
        f"<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>"
        for kind, url in services
    )
    return (
        f'<root xmlns="urn:schemas-upnp-org:device-1-0">{base}<device><deviceList><device>'
        f"<serviceList>{listed}</serviceList></device></deviceList></device></root>"
    ).encode()


def envelope(inside: str) -> bytes:
    return (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
        f"<s:Body>{inside}</s:Body></s:Envelope>"
    ).encode()


@pytest.mark.parametrize(
    ("base", "url", "absolute"),
    [
        ("", "/ctl/IPConn", "http://10.0.0.1:5000/ctl/IPConn"),
        ("", "ctl", "http://10.0.0.1:5000/desc/ctl"),
        ("", "http://10.0.0.1:6000/ctl?a=b", "http://10.0.0.1:6000/ctl?a=b"),
        ("<URLBase>http://10.0.0.1:80/x/</URLBase>", "ctl", "http://10.0.0.1:80/x/ctl"),
    ],
)
def test_where_a_service_is_called(base: str, url: str, absolute: str) -> None:
    assert upnp.services(description((WANIP2, url), base=base), LOCATION) == (Service(WANIP2, absolute),)
    assert Service(WANIP2, absolute).version == 2


def test_services_of_no_use_are_left_out() -> None:
    other = "urn:schemas-upnp-org:service:Layer3Forwarding:1"
    found = upnp.services(
        description((other, "/a"), (WANIP1, "/b"), (upnp.FIREWALL, "/c"), (WANIP1, "")), LOCATION
    )
    assert [service.kind for service in found] == [WANIP1, upnp.FIREWALL]


def test_the_most_services_and_one_more() -> None:
    for number in (upnp.MAX_SERVICES, upnp.MAX_SERVICES + 1):
        assert len(upnp.services(description(*[(WANIP1, "/c")] * number), LOCATION)) == upnp.MAX_SERVICES


@pytest.mark.parametrize("url", ["http://[10.0.0.1/", "/a b", "/\u00e4", "/" + "x" * upnp.MAX_URL])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(DecodeError):
        upnp.services(description((WANIP1, url)), LOCATION)


def test_a_document_that_is_no_description() -> None:
    with pytest.raises(DecodeError, match="not a description"):
        upnp.services(b"<html/>", LOCATION)


def test_3_2_1_a_call() -> None:
    fields, body = upnp.encode_call(WANIP1, "AddPortMapping", {"NewRemoteHost": "", "NewExternalPort": 4001})
    assert fields["SOAPAction"] == f'"{WANIP1}#AddPortMapping"'
    action = parse(body).children[0].children[0]
    assert (action.name, [(child.name, child.text) for child in action.children]) == (
        "AddPortMapping",
        [("NewRemoteHost", ""), ("NewExternalPort", "4001")],
    )


@given(
    st.dictionaries(
        st.sampled_from(["NewA", "NewB"]), st.text(st.characters(codec="utf-8", exclude_categories=["C"]))
    )
)
def test_any_argument_survives(arguments: dict[str, str]) -> None:
    _, body = upnp.encode_call(WANIP1, "Do", arguments)
    action = parse(body).children[0].children[0]
    assert {child.name: child.text for child in action.children} == arguments


def test_3_2_2_an_answer() -> None:
    body = envelope('<u:DoResponse xmlns:u="urn:x"><A> 1 </A><B/></u:DoResponse>')
    assert upnp.decode_answer(body, "Do") == {"A": "1", "B": ""}


def fault(inside: str) -> bytes:
    return envelope(
        f"<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring>{inside}</s:Fault>"
    )


def test_3_2_4_a_fault() -> None:
    told = fault(
        '<detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>725</errorCode>'
        "<errorDescription>OnlyPermanentLeasesSupported</errorDescription></UPnPError></detail>"
    )
    assert upnp.decode_answer(told, "Do") == Fault(725, "OnlyPermanentLeasesSupported")
    assert Fault(725, "x").sentence == "only permanent mappings are supported"
    assert Fault(799, "it rains").sentence == "it rains"
    assert Fault(0, "").sentence


def test_a_fault_without_a_code() -> None:
    assert upnp.decode_answer(fault(""), "Do") == Fault(0, "UPnPError")
    words = "<errorDescription>a\u0007\u0085b</errorDescription>"
    bad = f"<detail><UPnPError><errorCode>-1</errorCode>{words}</UPnPError></detail>"
    with pytest.raises(DecodeError):
        upnp.decode_answer(fault(bad), "Do")  # a control character is no XML
    assert upnp.decode_answer(fault(bad.replace("\u0007", "")), "Do") == Fault(0, "ab")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html/>", envelope(""), envelope("<u:OtherResponse/>"), b"<Envelope/>"],
)
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(DecodeError):
        upnp.decode_answer(body, "Do")


def test_what_the_actions_tell() -> None:
    assert upnp.external_address({"NewExternalIPAddress": "102.1.0.1"}) == IPv4Address("102.1.0.1")
    assert int(upnp.external_address({})) == 0, "a router that is not connected"
    assert upnp.reserved_port({"NewReservedPort": "65535"}) == 65535
    assert upnp.entry(
        {"NewInternalClient": "10.0.0.2", "NewInternalPort": "1", "NewEnabled": "1", "NewLeaseDuration": "60"}
    ) == Entry("10.0.0.2", 1, True, 60)


@pytest.mark.parametrize("text", ["", "0", "65536", "-1", "x", "\u0663", "99999999999"])
def test_a_port_that_is_none(text: str) -> None:
    with pytest.raises(DecodeError):
        upnp.reserved_port({"NewReservedPort": text})


@pytest.mark.parametrize("text", ["10.0.0", "::1", "router.local", "10.0.0.1 "])
def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(DecodeError):
        upnp.external_address({"NewExternalIPAddress": text})


@given(st.binary(max_size=200), st.sampled_from([b"", b"<root>", b"<Envelope><Body><DoResponse>"]))
def test_any_bytes_are_understood_or_a_decode_error(data: bytes, start: bytes) -> None:
    for decode in (lambda d: upnp.services(d, LOCATION), lambda d: upnp.decode_answer(d, "Do")):
        with contextlib.suppress(DecodeError):
            decode(start + data)
