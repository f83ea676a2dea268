"""flare relay --status, and flare status that shows it."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from flare.cli.status import screen
from tests.cli.command import LOOPBACK, facts, run, running


def address(url: str) -> str:
    return url.removeprefix("http://").rstrip("/")


def test_a_relay_shows_its_status() -> None:
    with running("relay", "--listen", LOOPBACK, "--status", "127.0.0.1:0", "--json") as relay:
        listening = relay.fact("listening")
        told = relay.fact("status")
        assert told["metrics"] is True
        with running("listen", "--relay", listening["addrs"][0], "--listen", LOOPBACK, "--json") as listener:
            listener.fact("reserved")
            asked = run("status", address(told["url"]), "--json")
            assert asked.returncode == 0, asked.stderr
            (status,) = facts(asked.stdout)
            assert status["event"] == "status"
            assert status["peer"] == listening["peer"]
            assert status["relay"]["reservations"] == 1
            shown = run("status", address(told["url"]))
            assert shown.returncode == 0, shown.stderr
            assert "reservations 1 of 128, 1 since start" in shown.stdout.decode()


def test_people_are_told_where_it_is() -> None:
    with running("relay", "--listen", LOOPBACK, "--status", "[::1]:0") as relay:
        while not (line := relay.line()).startswith("status at "):
            pass
        assert line.startswith("status at http://[::1]:")


def test_nobody_there() -> None:
    asked = run("status", "127.0.0.1:1")
    assert asked.returncode == 1
    assert b"no status server answers at 127.0.0.1:1" in asked.stderr


@pytest.mark.parametrize("words", [("status", "relay.example:9100"), ("relay", "--status", "nonsense")])
def test_no_address(words: tuple[str, ...]) -> None:
    asked = run(*words, *(("--listen", LOOPBACK) if words[0] == "relay" else ()))
    assert asked.returncode == 2
    assert b"is no IP address and port" in asked.stderr


@contextlib.contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[str]:
    """A server of somebody else's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("body", "status"), [(b"<html>", 200), (b"{}", 200), (b"[]", 200), (b'{"wire": 1}', 200), (b"{}", 404)]
)
def test_another_server(body: bytes, status: int) -> None:
    with answering(body, status) as where:
        asked = run("status", where)
        assert asked.returncode == 1
        assert b"not as a flare status server" in asked.stderr


def test_nothing_steers_the_terminal() -> None:
    status = json.loads("""{
        "agent": "flare", "peer": "p", "uptime": 1, "addrs": ["/ip4/192.0.2.1\\u001b[2J"], "connections": 0,
        "health": {"ok": false, "reasons": ["bad\\u0007"]},
        "wire": {"send_rate": 0, "receive_rate": 0, "sent": 0},
        "process": {"cpu_share": 0, "memory": 0, "lag": 0},
        "relay": {
            "circuits": 1, "max_circuits": null, "circuits_opened": 1, "bytes": 0, "reservations": 1,
            "max_reservations": 2, "reservations_opened": 1,
            "talkers": [{"peer": "x\\u001b", "agent": "\\u001b]0;evil\\u0007\\u202e", "circuits": 1,
                         "sent": 1, "received": 1, "rate": 1}],
            "longest": [{"source": "a\\r", "target": "b\\u009b", "age": 1, "bytes": 1, "rate": 1}],
            "refusals": [{"request": "reserve\\u001b", "reason": "no\\u001b", "count": 1}]
        }
    }""")
    text = screen(status)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "NOT HEALTHY: bad·" in text
    assert "evil" in text
