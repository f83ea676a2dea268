"""Answers of an HTTP server that may send anything: a response within the limits, or a documented error."""

from __future__ import annotations

from flare.config import HttpLimits
from flare.errors import DecodeError, NetworkError
from flare.transport.http_client import ResponseDecoder

CORPUS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.0 404 Not Found\nServer: x\n\nuntil the end",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nX: a\r\n b\r\n\r\n",
)
_LIMITS = HttpLimits(max_head=512, max_body=256)


def fuzz(data: bytes) -> None:
    found = []
    for step in (len(data) or 1, 3):  # however it is cut, it is the same response
        decoder = ResponseDecoder("GET", _LIMITS)
        try:
            for at in range(0, len(data), step):
                decoder.feed(data[at : at + step])
                assert len(decoder.body) <= _LIMITS.max_body
            decoder.end()
        except (DecodeError, NetworkError) as error:
            found.append((type(error), 0, b""))
            continue
        assert decoder.done
        assert 200 <= decoder.status <= 999
        found.append((None, decoder.status, bytes(decoder.body)))
    assert found[0] == found[1]
