"""The C load and the C limit, with every format of records and a load small enough for a test."""

import json
import os
import shutil

import pytest
from benchmarks.relay import load, parts, relays
from benchmarks.relay.circuits import KEY_BYTES, keys
from benchmarks.relay.load import Measured, payload

pytestmark = pytest.mark.bench

FORMATS = tuple(KEY_BYTES)
SECONDS = 0.05


@pytest.fixture(params=FORMATS)
def records(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(relays.LIMIT_RECORDS, "noise", request.param)
    return str(request.param)


def through_the_limit(size: int, bulk: int, echo: int = 0, caps: tuple[int, ...] = (0,)) -> list[Measured]:
    with relays.running(relays.LIMIT, "noise", pairs=bulk + echo) as server:
        made = server.circuits(bulk + echo)
        return load.drive(made[:bulk], made[bulk:], server.pid, size, 0.02, SECONDS, (), caps)


@pytest.mark.parametrize("size", [1, 1024, 16372, 65507, 65536])
def test_every_format_carries_every_size(records: str, size: int) -> None:
    (got,) = through_the_limit(size, bulk=1)
    assert got.bytes > 0
    assert got.cpu_seconds > 0
    assert got.per_circuit == (got.bytes,)


def test_many_circuits_at_two_depths() -> None:
    one, more = through_the_limit(1024, bulk=20, caps=(1, 8))
    assert (one.cap, more.cap) == (1, 8)
    assert len(one.per_circuit) == len(more.per_circuit) == 20
    assert min(one.per_circuit) > 0
    assert sum(more.per_circuit) == more.bytes


def test_a_message_goes_to_and_fro_beside_bulk(records: str) -> None:
    (got,) = through_the_limit(16372, bulk=2, echo=1)
    assert len(got.per_circuit) == 2, "the echo circuit is none of them"
    assert got.round_trips_ns
    assert min(got.round_trips_ns) > 0


def test_a_relay_that_goes_away_is_an_error() -> None:
    with relays.running(relays.LIMIT, pairs=1) as server:
        made = server.circuits(1)
    with pytest.raises(ConnectionError, match="load ended early"):
        load.drive(made, (), os.getpid(), 1024, 0, SECONDS)


@pytest.mark.parametrize(
    ("records", "message", "carried"),
    [
        ("noise", 16384, 16384),
        ("noise", 65507, 65507),
        ("noise", 65536, 65507),
        ("tls-aes128", 4096, 4096),
        ("tls-aes128", 16384, 16372),
        ("tls-aes128", 65536, 65524),
    ],
)
def test_a_message_fills_its_records(records: str, message: int, carried: int) -> None:
    assert payload(message, records) == carried


def test_what_the_load_prints_is_read() -> None:
    line = json.dumps(
        {"cap": 1, "bytes": 2048, "seconds": 0.5, "cpu_seconds": 0.25, "user": 0.1, "system": 0.1}
        | {"load_seconds": 0.4, "per_circuit": [1024, 1024], "round_trips_ns": [5]}
    )
    got = Measured.parse(line)
    assert got.per_circuit == (1024, 1024)
    assert got.rates() == pytest.approx({"busy": 0.5, "load": 0.8, "kernel": 0.5})


def test_flare_itself_in_one_small_run() -> None:
    plan = parts.Plan(relays=("flare",), security=("noise",), messages=(1024,), seconds=SECONDS, warmup=0.02)
    (job,) = parts.bytes_jobs(plan)
    (seen,) = job.run(3)
    assert not seen.failure
    assert (seen.relay, seen.case, seen.run) == ("flare", "noise/1024", 3)
    assert seen.values["mb_per_s"] > 0


def test_a_relay_that_does_not_start_is_an_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "command", lambda *_: [shutil.which("false")])
    (job,) = parts.bytes_jobs(parts.Plan(relays=("go",), security=("noise",), messages=(1024,)))
    (seen,) = job.run()
    assert "before it listened" in seen.failure


def test_keys_have_the_size_that_their_format_wants() -> None:
    assert {len(key) for key in keys("tls-aes128")} == {28}
