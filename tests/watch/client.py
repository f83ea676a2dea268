"""A raw HTTP client for the tests: sends what it is told and reads until the server hangs up."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import flare


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


async def raw(server: flare.StatusServer, request: bytes) -> bytes:
    """Everything the server says to these bytes; b"" when it hangs up without a word."""
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def parse(answer: bytes) -> Reply:
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    return Reply(int(line.split()[1]), headers, body)


async def get(
    server: flare.StatusServer, path: str, *, method: str = "GET", host: str | None = None
) -> Reply:
    head = f"{method} {path} HTTP/1.1\r\nHost: {host or server.address}\r\n\r\n"
    return parse(await raw(server, head.encode("latin-1")))
