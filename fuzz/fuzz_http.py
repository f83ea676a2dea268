"""Requests to the status server from anybody: a request for a path, or a refusal."""

from __future__ import annotations

from flare.watch.http import Refused, is_trusted, parse_request

CORPUS = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:9100\r\n\r\n",
    b"HEAD /metrics?x=y HTTP/1.0\r\nAccept: */*\r\n\r\n",
    b"GET /status.json HTTP/1.1\r\nHost: [::1]\r\nX-Long: " + b" " * 4000 + b"\r\n\r\n",
)


def fuzz(data: bytes) -> None:
    try:
        request = parse_request(data)
    except Refused:
        return
    assert request.path.startswith("/")
    assert request.path.isprintable()
    if request.host is not None and is_trusted(request.host):
        assert "localhost" in request.host.lower() or request.host[0] in "0123456789["
