"""Answers of a DNS server that may send anything: texts, None for a cut one, or a documented error."""

from __future__ import annotations

import contextlib
import struct

from flare.errors import DecodeError, NetworkError
from flare.transport.dns import MAX_RECORDS, decode_answer, encode_question

_QUESTION = encode_question("_dnsaddr.example.com", 0x1234)


def _answer(*records: bytes, flags: int = 0x8180) -> bytes:
    body = b"".join(b"\xc0\x0c" + struct.pack("!2HIH", 16, 1, 60, len(record)) + record for record in records)
    return _QUESTION[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0) + _QUESTION[12:-11] + body


CORPUS = (
    _answer(b"\x08dnsaddr="),
    _answer(b"\x04abcd\x04efgh", b"\x01x", b""),
    _answer(flags=0x8380),
    _answer(flags=0x8183),
)


def fuzz(data: bytes) -> None:
    for message in (data, _answer() + data, _answer(flags=0x8180)[:6] + b"\x00\x09" + _answer()[8:] + data):
        with contextlib.suppress(DecodeError, NetworkError):
            texts = decode_answer(message, _QUESTION)
            assert texts is None or (
                len(texts) <= MAX_RECORDS and all(isinstance(text, str) for text in texts)
            )
