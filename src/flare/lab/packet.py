"""IPv4 packets as routers see them: parsed once, rewritten in place with incremental checksums (RFC 1624).

Addresses are 32-bit integers here: a NAT compares and stores far more of them than it prints.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
ECHO_REPLY, UNREACHABLE, ECHO_REQUEST, TIME_EXCEEDED = 0, 3, 8, 11
PORT_UNREACHABLE = 3
ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})
PROTOCOL_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}

_L4_HEADER = {TCP: 20, UDP: 8, ICMP: 8}
_CHECKSUM_AT = {TCP: 16, UDP: 6}


def address(text: str) -> int:
    """The integer of a dotted address; ValueError when it is none."""
    return int(IPv4Address(text))


def dotted(value: int) -> str:
    """The dotted form of an address."""
    return str(IPv4Address(value))


def ones_sum(data: bytes | bytearray | memoryview) -> int:
    """The 16-bit one's complement sum of `data`, an odd last byte padded with zero (RFC 1071)."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The internet checksum of `data`, whose own checksum field must be zero."""
    return ~ones_sum(data) & 0xFFFF


def adjusted(check: int, old_sum: int, new_sum: int) -> int:
    """`check` after words of sum `old_sum` were replaced by words of sum `new_sum` (RFC 1624, equation 3)."""
    total = (~check & 0xFFFF) + (~old_sum & 0xFFFF) + new_sum
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Packet:
    """One whole IPv4 packet with a TCP, UDP or ICMP header, or the part of one that an ICMP error quotes.

    `sport` and `dport` are the ports. An ICMP echo request goes from port `identifier` to 0, the reply back.
    """

    __slots__ = ("data", "dport", "dst", "flags", "header", "protocol", "quoted", "sport", "src", "start")

    def __init__(self, data: bytearray, start: int, header: int, quoted: bool) -> None:
        self.data = data
        self.start = start
        self.header = start + header
        self.quoted = quoted
        self.protocol = data[start + 9]
        self.src, self.dst = struct.unpack_from("!II", data, start + 12)
        self.sport = self.dport = self.flags = 0
        at = self.header
        if self.protocol != ICMP:
            self.sport, self.dport = struct.unpack_from("!HH", data, at)
            if self.protocol == TCP and not quoted:
                self.flags = data[at + 13]
        elif data[at] == ECHO_REQUEST:
            self.sport = struct.unpack_from("!H", data, at + 4)[0]
        elif data[at] == ECHO_REPLY:
            self.dport = struct.unpack_from("!H", data, at + 4)[0]

    @classmethod
    def parse(cls, raw: bytes | bytearray | memoryview) -> Packet | None:
        """The packet in `raw` (copied), or None: not IPv4, malformed, a fragment, or of another protocol."""
        data = bytearray(raw)
        size = _header_size(data, 0)
        if size == 0:
            return None
        total, _, fragment = struct.unpack_from("!HHH", data, 2)
        protocol = data[9]
        need = _L4_HEADER.get(protocol)
        if need is None or total > len(data) or total < size + need or fragment & 0x3FFF:
            return None
        del data[total:]
        if protocol == TCP and not 20 <= (data[size + 12] >> 4) * 4 <= total - size:
            return None
        if protocol == UDP and not 8 <= struct.unpack_from("!H", data, size + 4)[0] <= total - size:
            return None
        return cls(data, 0, size, False)

    def embedded(self) -> Packet | None:
        """What an ICMP error quotes, sharing this packet's bytes; None when there is nothing usable."""
        if not self.is_error:
            return None
        start = self.header + 8
        size = _header_size(self.data, start)
        if size == 0 or len(self.data) < start + size + 8 or self.data[start + 9] not in _L4_HEADER:
            return None
        if struct.unpack_from("!H", self.data, start + 6)[0] & 0x1FFF:
            return None
        return Packet(self.data, start, size, True)

    @property
    def is_error(self) -> bool:
        return self.protocol == ICMP and not self.quoted and self.data[self.header] in ICMP_ERRORS

    @property
    def icmp_type(self) -> int:
        return self.data[self.header]

    @property
    def ttl(self) -> int:
        return self.data[self.start + 8]

    @property
    def seq(self) -> int:
        return int(struct.unpack_from("!I", self.data, self.header + 4)[0])

    @property
    def ack(self) -> int:
        return int(struct.unpack_from("!I", self.data, self.header + 8)[0])

    @property
    def payload(self) -> bytes:
        """What follows the TCP or UDP header."""
        offset = (self.data[self.header + 12] >> 4) * 4 if self.protocol == TCP else 8
        return bytes(self.data[self.header + offset :])

    @property
    def segment_length(self) -> int:
        """TCP sequence numbers that the segment takes: its payload, SYN and FIN."""
        return len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)

    def checksums_right(self) -> bool:
        """Whether the IP and inner checksums hold, and the IP one of what an error quotes."""
        if ones_sum(self.data[self.start : self.header]) != 0xFFFF:
            return False
        body = self.data[self.header :]
        if self.quoted or (self.protocol == UDP and body[6:8] == b"\0\0"):
            return True
        pseudo = struct.pack("!IIBBH", self.src, self.dst, 0, self.protocol, len(body))
        if ones_sum(bytes(body) if self.protocol == ICMP else pseudo + body) != 0xFFFF:
            return False
        quote = self.embedded()
        return quote is None or quote.checksums_right()

    def decrement_ttl(self) -> bool:
        """One hop: False when the packet dies of it."""
        ttl = self.ttl
        if ttl <= 1:
            return False
        at = self.start + 8
        self._replace(at, bytes((ttl - 1, self.data[at + 1])), (self.start + 10,))
        return True

    def set_source(self, host: int, port: int) -> None:
        """Rewrite source address and port (or echo identifier), checksums included."""
        self._set_endpoint(self.start + 12, 0, host, port)
        self.src = host
        if self.protocol != ICMP or self.icmp_type == ECHO_REQUEST:
            self.sport = port

    def set_destination(self, host: int, port: int) -> None:
        """Rewrite destination address and port (or echo identifier), checksums included."""
        self._set_endpoint(self.start + 16, 2, host, port)
        self.dst = host
        if self.protocol != ICMP or self.icmp_type == ECHO_REPLY:
            self.dport = port

    def set_addresses(self, src: int, dst: int) -> None:
        """Rewrite the addresses alone: what an ICMP error's outer header needs."""
        self._replace(self.start + 12, struct.pack("!II", src, dst), (self.start + 10,))
        self.src, self.dst = src, dst

    def rewrite_quote(
        self, embedded: Packet, *, source: tuple[int, int] | None, destination: tuple[int, int] | None
    ) -> None:
        """Rewrite an end of the packet that this ICMP error quotes, and adjust the error's checksum."""
        before = ones_sum(memoryview(self.data)[self.header + 4 :])
        if source is not None:
            embedded.set_source(*source)
        if destination is not None:
            embedded.set_destination(*destination)
        after = ones_sum(memoryview(self.data)[self.header + 4 :])
        self._adjust(self.header + 2, before, after)

    def _set_endpoint(self, address_at: int, port_offset: int, host: int, port: int) -> None:
        checks = [self.start + 10]
        at = self.header
        check = at + _CHECKSUM_AT.get(self.protocol, 0)
        has_check = self.protocol != ICMP and check + 2 <= len(self.data)
        if has_check and self.protocol == UDP and self.data[check : check + 2] == b"\0\0":
            has_check = False  # RFC 768: the sender made none
        if has_check:
            checks.append(check)
        self._replace(address_at, struct.pack("!I", host), tuple(checks))
        if self.protocol == ICMP:
            if self.icmp_type == (ECHO_REPLY if port_offset else ECHO_REQUEST):
                self._replace(at + 4, struct.pack("!H", port), (at + 2,))
            return
        self._replace(at + port_offset, struct.pack("!H", port), (check,) if has_check else ())
        if has_check and self.protocol == UDP and self.data[check : check + 2] == b"\0\0":
            self.data[check : check + 2] = b"\xff\xff"

    def _replace(self, at: int, new: bytes, checks: tuple[int, ...]) -> None:
        old_sum, new_sum = ones_sum(self.data[at : at + len(new)]), ones_sum(new)
        self.data[at : at + len(new)] = new
        for check in checks:
            self._adjust(check, old_sum, new_sum)

    def _adjust(self, check: int, old_sum: int, new_sum: int) -> None:
        value = adjusted(struct.unpack_from("!H", self.data, check)[0], old_sum, new_sum)
        struct.pack_into("!H", self.data, check, value)

    def __repr__(self) -> str:
        return f"<{self.summary()}>"

    def summary(self) -> str:
        """One line for traces: protocol, ends, TCP flags and numbers, TTL."""
        ends = f"{dotted(self.src)}:{self.sport} > {dotted(self.dst)}:{self.dport}"
        text = f"{PROTOCOL_NAMES[self.protocol]} {ends} ttl {self.ttl}"
        if self.protocol == TCP:
            letters = "".join(
                c for bit, c in ((SYN, "S"), (FIN, "F"), (RST, "R"), (ACK, ".")) if self.flags & bit
            )
            text += f" [{letters}] seq {self.seq} ack {self.ack}"
        if self.protocol == ICMP:
            text += f" type {self.icmp_type}"
            quote = self.embedded()
            if quote is not None:
                text += f" about {dotted(quote.src)}:{quote.sport} > {dotted(quote.dst)}:{quote.dport}"
            return text
        return f"{text} length {len(self.payload)}"


def _header_size(data: bytearray, start: int) -> int:
    """Bytes of the IPv4 header at `start`, 0 when there is none."""
    if len(data) < start + 20 or data[start] >> 4 != 4:
        return 0
    size = (data[start] & 15) * 4
    return size if size >= 20 and len(data) >= start + size else 0


def ip_packet(protocol: int, src: int, dst: int, body: bytes, ttl: int = 64) -> bytes:
    """An IPv4 packet around `body`, with the header's checksum."""
    header = bytearray(
        struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(body), 0, 0x4000, ttl, protocol, 0, src, dst)
    )
    struct.pack_into("!H", header, 10, checksum(header))
    return bytes(header) + body


def _with_pseudo_checksum(protocol: int, src: int, dst: int, body: bytearray) -> bytes:
    at = _CHECKSUM_AT[protocol]
    value = checksum(struct.pack("!IIBBH", src, dst, 0, protocol, len(body)) + body)
    struct.pack_into("!H", body, at, value or 0xFFFF if protocol == UDP else value)
    return bytes(body)


def tcp_packet(
    source: tuple[int, int], destination: tuple[int, int], flags: int, *, seq: int = 0, ack: int = 0,
    payload: bytes = b"", ttl: int = 64,
) -> bytes:  # fmt: skip
    """A TCP segment with correct checksums."""
    body = bytearray(
        struct.pack("!HHIIBBHHH", source[1], destination[1], seq, ack, 0x50, flags, 65535, 0, 0) + payload
    )
    return ip_packet(
        TCP, source[0], destination[0], _with_pseudo_checksum(TCP, source[0], destination[0], body), ttl
    )


def udp_packet(
    source: tuple[int, int], destination: tuple[int, int], payload: bytes = b"", ttl: int = 64
) -> bytes:
    """A UDP datagram with correct checksums."""
    body = bytearray(struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0) + payload)
    return ip_packet(
        UDP, source[0], destination[0], _with_pseudo_checksum(UDP, source[0], destination[0], body), ttl
    )


def icmp_packet(
    src: int, dst: int, kind: int, code: int, rest: bytes, payload: bytes, ttl: int = 64
) -> bytes:
    """An ICMP message; `rest` is the second four bytes of its header."""
    body = bytearray(struct.pack("!BBH", kind, code, 0) + rest + payload)
    struct.pack_into("!H", body, 2, checksum(body))
    return ip_packet(ICMP, src, dst, bytes(body), ttl)


def icmp_error(router: int, about: Packet, kind: int, code: int = 0) -> bytes | None:
    """The error that `router` sends about a packet, None when it must not (RFC 1812 4.3.2)."""
    if about.is_error:
        return None
    return icmp_packet(router, about.src, kind, code, b"\0\0\0\0", bytes(about.data[:548]))


def echo_reply(request: Packet) -> bytes:
    """The answer to an ICMP echo request."""
    at = request.header
    return icmp_packet(
        request.dst,
        request.src,
        ECHO_REPLY,
        0,
        bytes(request.data[at + 4 : at + 8]),
        bytes(request.data[at + 8 :]),
    )


def tcp_reset(about: Packet) -> bytes | None:
    """The RST that a closed port answers (RFC 9293 3.10.7.1), None to a RST."""
    if about.flags & RST:
        return None
    source, destination = (about.dst, about.dport), (about.src, about.sport)
    if about.flags & ACK:
        return tcp_packet(source, destination, RST, seq=about.ack)
    return tcp_packet(source, destination, RST | ACK, ack=(about.seq + about.segment_length) & 0xFFFFFFFF)
