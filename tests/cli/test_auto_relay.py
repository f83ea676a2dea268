"""flare listen --auto-relay: where relays come from, and what it prints."""

from __future__ import annotations

import signal

from tests.cli.command import LOOPBACK, run, running


def test_it_holds_places_on_two_and_moves_when_one_ends() -> None:
    relay = ("relay", "--listen", LOOPBACK, "--json")
    with running(*relay) as one, running(*relay) as two, running(*relay) as three:
        addrs = {fact["peer"]: fact["addrs"][0] for fact in (r.fact("listening") for r in (one, two, three))}
        sources = [word for addr in addrs.values() for word in ("--relay-source", addr)]
        with running("listen", *sources, "--listen", LOOPBACK, "--json") as listener:
            chosen = [listener.fact("relay-chosen") for _ in range(2)]
            assert {fact["source"] for fact in chosen} == {"configuration"}
            assert all(0 < fact["latency"] < 5 for fact in chosen)
            first, second = (fact["relay"] for fact in chosen)
            (third,) = addrs.keys() - {first, second}
            ending = next(r for r, peer in zip((one, two, three), addrs, strict=True) if peer == first)
            ending.process.send_signal(signal.SIGTERM)
            assert listener.fact("relay-chosen")["relay"] == third
            assert listener.fact("relay-dropped")["relay"] == first


def test_relays_of_the_command_line_are_candidates_too() -> None:
    with running("relay", "--listen", LOOPBACK) as relay:
        relay.line()
        addr = relay.line().strip()
        with running("listen", "--relay", addr, "--auto-relay", "--listen", LOOPBACK) as listener:
            lines = [listener.line() for _ in range(5)]
            assert f"reserved on {addr[-8:]}: reach me at" in lines
            assert any(
                line.startswith(f"chose relay {addr[-8:]} from configuration, ") and line.endswith(" ms away")
                for line in lines
            )


def test_a_source_that_is_none() -> None:
    ended = run("listen", "--relay-source", "relays.example", "--listen", LOOPBACK)
    assert ended.returncode == 2, ended
    assert b"Traceback" not in ended.stderr
