"""What is measured: each part is a list of jobs, and a job runs one relay once in one case or a few."""

from __future__ import annotations

import asyncio
import functools
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.interop.build import BuildFailed

from benchmarks.relay import connections, load, relays
from benchmarks.relay.load import Measured
from benchmarks.relay.results import Observation, jain, percentile
from flare.config import Security
from flare.errors import FlareError

MANY_MESSAGE = 1024
CAPS = (1, 64)  # messages that a circuit has under way at most
BESIDE = (0, 1, 4)  # bulk circuits beside the ping-pong
BULK_MESSAGE = 16384
# What a relay that cannot carry the load makes us see.
FAILURES = (
    OSError,
    FlareError,
    BuildFailed,
    subprocess.SubprocessError,
    asyncio.IncompleteReadError,
    ExceptionGroup,
)

Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, and of what."""

    relays: tuple[str, ...] = relays.ALL
    security: tuple[Security, ...] = ("noise", "tls")
    messages: tuple[int, ...] = (1024, 4096, 16384, 65536)
    circuits: tuple[int, ...] = (10, 100, 1000)  # growing
    threads: tuple[int, ...] = (1, 2)
    connections: tuple[int, ...] = (1000, 10_000)
    idle: float = 35.0  # seconds that idle connections are watched, in the first run
    seconds: float = 0.8
    warmup: float = 0.4
    runs: int = 3


@dataclass(frozen=True, slots=True)
class Job:
    """One relay, once: `work`, told which run it is, gives values for each of the cases in their order."""

    part: str
    relay: str
    cases: Sequence[str]
    work: Callable[[int], list[Values]]

    def run(self, number: int = 1) -> Iterator[Observation]:
        """Do it, as run `number`. A relay that fails is an observation too."""
        try:
            found = self.work(number)
        except FAILURES as error:
            reason = str(error) or type(error).__name__
            for case in self.cases:
                yield Observation(self.part, case, self.relay, failure=reason.splitlines()[-1], run=number)
        else:
            for case, values in zip(self.cases, found, strict=True):
                yield Observation(self.part, case, self.relay, values, run=number)


def bytes_jobs(plan: Plan) -> Iterator[Job]:
    """One circuit at full speed, for each security and size of messages."""
    for security in plan.security:
        for size in plan.messages:
            for relay in plan.relays:
                work = functools.partial(_one_circuit, relay, security, size, plan)
                yield Job("bytes", relay, (f"{security}/{size}",), work)


def _one_circuit(relay: str, security: Security, size: int, plan: Plan, _: int) -> list[Values]:
    with relays.running(relay, security) as server:
        return [_bulk(server, size, plan)]


def cores_jobs(plan: Plan) -> Iterator[Job]:
    """Four bulk circuits through flare, its data threads free to use every core, the load too."""
    for threads in plan.threads:
        yield Job("cores", relays.FLARE, (str(threads),), functools.partial(_four_circuits, threads, plan))


def _four_circuits(threads: int, plan: Plan, _: int) -> list[Values]:
    with relays.running(relays.FLARE, "noise", threads=threads, core=None) as server:
        return [_bulk(server, BULK_MESSAGE, plan, circuits=4, prefix=())]


def _bulk(
    server: relays.Running, size: int, plan: Plan, circuits: int = 1, prefix: Sequence[str] | None = None
) -> Values:
    bulk = server.circuits(circuits)
    message = load.payload(size, bulk[0].records)
    words = relays.pinned(1) if prefix is None else prefix
    (got,) = load.drive(bulk, (), server.pid, message, plan.warmup, plan.seconds, words)
    return _arrived(got) | {
        "mb_per_s": got.bytes / got.seconds / 1e6,
        "cpu_s_per_gb": got.cpu_seconds / (got.bytes / 1e9),
    }


def many_jobs(plan: Plan) -> Iterator[Job]:
    """Many circuits of small messages, each circuit and each of its ends with connections of their own.

    How the cost grows, with fewer circuits too, is shown for flare and the C limit.
    """
    *fewer, most = plan.circuits
    for count in fewer:
        for relay in plan.relays:
            if relay in (relays.LIMIT, relays.FLARE):
                yield _many_job(relay, count, plan)
    for relay in _plain(plan):
        yield _many_job(relay, most, plan)


def _many_job(relay: str, count: int, plan: Plan) -> Job:
    cases = [f"{count}/{cap}" for cap in CAPS]
    return Job("many", relay, cases, functools.partial(_many_circuits, relay, count, plan))


def _many_circuits(relay: str, count: int, plan: Plan, _: int) -> list[Values]:
    with relays.running(relay, pairs=count) as server:
        bulk = server.circuits(count)
        limits = (plan.warmup, plan.seconds, relays.pinned(1), CAPS)
        return [_many(got) for got in load.drive(bulk, (), server.pid, MANY_MESSAGE, *limits)]


def _many(got: Measured) -> Values:
    messages = got.bytes / MANY_MESSAGE
    return _arrived(got) | {
        "messages_per_s": messages / got.seconds,
        "cpu_us_per_message": got.cpu_seconds / max(messages, 1) * 1e6,
        "jain": jain(got.per_circuit),
    }


def latency_jobs(plan: Plan) -> Iterator[Job]:
    """A ping-pong circuit beside bulk circuits that saturate the relay, and beside none."""
    for count in BESIDE:
        for relay in _plain(plan):
            yield Job("latency", relay, (f"{count} bulk",), functools.partial(_beside, relay, count, plan))


def _beside(relay: str, count: int, plan: Plan, _: int) -> list[Values]:
    with relays.running(relay, pairs=count + 1) as server:
        made = server.circuits(count + 1)
        limits = (BULK_MESSAGE, plan.warmup, 2 * plan.seconds, relays.pinned(1))
        (got,) = load.drive(made[1:], made[:1], server.pid, *limits)
        return [_latency(got)]


def _latency(got: Measured) -> Values:
    trips = [trip / 1e6 for trip in got.round_trips_ns]
    if not trips:
        raise ConnectionError("no message came back")
    return got.rates() | {
        "p50_ms": percentile(trips, 50),
        "p99_ms": percentile(trips, 99),
        "trips": len(trips),
        "mb_per_s": got.bytes / got.seconds / 1e6,
    }


def _plain(plan: Plan) -> list[str]:
    """The relays without the variants that the bytes part shows."""
    return [relay for relay in plan.relays if relay not in relays.BYTES_ONLY]


def connections_jobs(plan: Plan) -> Iterator[Job]:
    """Handshakes, and what connections with a reservation cost that do nothing (connections.py)."""
    for relay in _plain(plan):
        if relay == relays.LIMIT:
            continue
        # At a hundred handshakes a second the slow ones would take all the time there is.
        counts = plan.connections[:1] if relay in relays.SLOW else plan.connections
        cases = [str(count) for count in counts]
        yield Job("connections", relay, cases, functools.partial(_connections, relay, counts, plan))


def _connections(relay: str, counts: Sequence[int], plan: Plan, run: int) -> list[Values]:
    steps = connections.measure(
        relays.command(relay),
        counts,
        idle=plan.idle if run == 1 else 0.0,
        relay_prefix=relays.pinned(0),
        clients_prefix=relays.pinned(1),
    )
    return [
        {
            "handshakes_per_cpu_s": step.per_cpu_second,
            "rss_kib": step.rss_kib,
            "pss_kib": step.pss_kib,
            "socket_kib": step.socket_kib,
            "failed": step.failed,
        }
        | ({"idle_cpu_s_per_min": step.idle_cpu} if run == 1 and plan.idle else {})
        for step in steps
    ]


def _arrived(got: Measured) -> Values:
    if not got.bytes:
        raise ConnectionError("nothing arrived")
    return got.rates()


PARTS: dict[str, Callable[[Plan], Iterator[Job]]] = {
    "bytes": bytes_jobs,
    "many": many_jobs,
    "latency": latency_jobs,
    "connections": connections_jobs,
    "cores": cores_jobs,
}
