"""What the lab saw: a text trace, and a pcapng capture with one interface per host and side."""

from __future__ import annotations

import struct
import time
from typing import BinaryIO, TextIO

from flare.lab.packet import Packet

_RAW_IPV4 = 228  # LINKTYPE_IPV4


class Capture:
    """A pcapng file. Packets of a host behind a NAT appear twice: on its `lan` and on its `wan` interface."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._interfaces: dict[str, int] = {}
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1))

    def packet(self, interface: str, raw: bytes, now: float) -> None:
        """Record a packet seen on an interface at `now`, monotonic seconds."""
        index = self._interfaces.get(interface)
        if index is None:
            index = self._interfaces[interface] = len(self._interfaces)
            options = self._option(2, interface.encode()) + self._option(9, b"\x09") + self._option(0, b"")
            self._block(1, struct.pack("=HHI", _RAW_IPV4, 0, 0) + options)
        stamp = int(now * 1e9) + self._offset_ns
        body = struct.pack("=IIIII", index, stamp >> 32, stamp & 0xFFFFFFFF, len(raw), len(raw))
        self._block(6, body + raw + b"\0" * (-len(raw) % 4))

    @staticmethod
    def _option(code: int, value: bytes) -> bytes:
        return struct.pack("=HH", code, len(value)) + value + b"\0" * (-len(value) % 4)

    def _block(self, kind: int, body: bytes) -> None:
        size = struct.pack("=I", 12 + len(body))
        self._file.write(struct.pack("=I", kind) + size + body + size)

    def close(self) -> None:
        self._file.close()


class Tracer:
    """Tells a capture and a text file what happens to each packet; either may be absent."""

    def __init__(self, capture: Capture | None = None, text: TextIO | None = None) -> None:
        self._capture = capture
        self._text = text
        self._start = time.monotonic()
        self.active = capture is not None or text is not None

    def seen(self, interface: str, raw: bytes, now: float, note: str = "") -> None:
        """A packet passed `interface`, or ended there with a `note` that says why."""
        if self._capture is not None and not note:
            self._capture.packet(interface, raw, now)
        if self._text is not None:
            packet = Packet.parse(raw)
            what = packet.summary() if packet else f"{len(raw)} bytes that are no IPv4 packet of ours"
            end = f"  -- {note}" if note else ""
            self._text.write(f"{now - self._start:9.4f} {interface:10} {what}{end}\n")
            self._text.flush()

    def close(self) -> None:
        if self._capture is not None:
            self._capture.close()
