"""What a router serves over HTTP: its description, its SOAP, and where its URLs lead."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address

from flare.errors import DecodeError, ProtocolViolation
from flare.nat.port_mapping.urls import checked, moved
from flare.wire import upnp, xml_tree

_GATEWAY = ip_address("10.0.0.1")
_GATEWAY6 = ip_address("fe80::1")
_LOCATION = "http://10.0.0.1:5000/root.xml"
_DESCRIPTION = (
    b'<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><URLBase>http://10.0.0.1:5000</URLBase>'
    b"<device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
    b"<controlURL>/ctl/IPConn</controlURL></service></serviceList></device></root>"
)
_ENTRY = (
    b"<s:Envelope><s:Body><u:DoResponse><NewInternalClient>10.0.0.2</NewInternalClient><NewInternalPort>4001"
    b"</NewInternalPort><NewEnabled>1</NewEnabled><NewLeaseDuration>60</NewLeaseDuration><NewReservedPort>4001"
    b"</NewReservedPort><NewExternalIPAddress>102.1.0.1</NewExternalIPAddress></u:DoResponse></s:Body></s:Envelope>"
)
_FAULT = (
    b"<s:Envelope><s:Body><s:Fault><detail><UPnPError><errorCode>725</errorCode><errorDescription>Only</errorDescription>"
    b"</UPnPError></detail></s:Fault></s:Body></s:Envelope>"
)

CORPUS = (
    _DESCRIPTION,
    _ENTRY,
    _FAULT,
    b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;&b;">]><a>&d;</a>',
    b"http://10.0.0.1:5000/ctl?a=b",
    b"http://10.0.0.2/",
)


def fuzz(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        elements = list(xml_tree.parse(data).walk())
        assert len(elements) <= xml_tree.MAX_ELEMENTS
    with contextlib.suppress(DecodeError, ProtocolViolation):
        for service in upnp.services(data, _LOCATION):
            assert "10.0.0.1" in checked(service.control, _GATEWAY)
    with contextlib.suppress(DecodeError):
        told = upnp.decode_answer(data, "Do")
        if isinstance(told, upnp.Fault):
            assert told.sentence.isprintable()
        else:
            for read in (upnp.entry, upnp.reserved_port, upnp.external_address):
                with contextlib.suppress(DecodeError):
                    read(told)
    with contextlib.suppress(ProtocolViolation):
        url = checked(data.decode(errors="replace"), _GATEWAY)
        assert url.lower().startswith("http:")
        assert "[fe80::1%2]" in moved(url, _GATEWAY6, 2)
