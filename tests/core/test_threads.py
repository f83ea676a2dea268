"""Engines that threads drive: they get on without Python, links move between them, and they end well."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from flare._core.engine import Engine
from flare._core.link import READABLE, LinkStream
from flare._core.shaper import Bucket
from flare._core.splice import Splice, SpliceResult, splice
from flare.errors import ConnectionClosed, UsageError
from tests.support.aio import aio, eventually
from tests.support.mux import Pair, drain, run, settle

MANY = 6
SIZE = 3_000_000


@pytest.fixture
def two() -> Iterator[tuple[Engine, Engine]]:
    """Two engines with threads, beside each other."""
    first = Engine(thread="test-first")
    second = Engine(thread="test-second", beside=first)
    yield first, second
    first.close()
    second.close()


class Circuit:
    """near -- `at` | `to` -- far, with the ends on an engine that calls drive."""

    def __init__(self, ends: Engine, at: Engine, to: Engine, **limits: float) -> None:
        self.left = Pair(ends, at, **limits)
        self.right = Pair(to, ends, **limits)
        self.near, self.a = self.left.open()
        self.b, self.far = self.right.open()
        self.results: list[SpliceResult] = []

    def join(self, **how: object) -> Splice:
        return splice(self.a, self.b, on_done=self.results.append, **how)  # type: ignore[arg-type]


def until(condition: Callable[[], object], *engines: Engine, seconds: float = 20.0) -> None:
    """Run passes until `condition()`; the engines with threads run theirs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        for engine in engines:
            engine.run_pass(0)


def thread_names() -> set[str]:
    found = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as comm:
            found.add(comm.read().strip())
    return found


class TestTheThread:
    def test_it_has_its_name_blocks_signals_and_ends_with_the_engine(self) -> None:
        engine = Engine(thread="flare-data-0, and more")
        assert engine.threaded
        assert "flare-data-0, a" in thread_names()
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/status") as status:
                fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
            if fields["Name"].startswith("flare-data-0"):
                blocked = int(fields["SigBlk"], 16)
                assert blocked >> (2 - 1) & 1, "SIGINT"
                assert blocked >> (15 - 1) & 1, "SIGTERM"
        engine.close()
        assert "flare-data-0, a" not in thread_names()

    def test_a_circuit_gets_on_while_python_keeps_the_interpreter(self, two: tuple[Engine, Engine]) -> None:
        ends = Engine(thread="test-ends")
        circuit = Circuit(ends, *two)
        joined = circuit.join()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(10)
        try:
            circuit.near.write(bytes(100_000))
            while circuit.far.readable < 100_000:
                pass  # nothing here lets go of the GIL
        finally:
            sys.setswitchinterval(interval)
        assert joined.bytes_a_to_b == 100_000
        ends.close()

    def test_its_descriptor_is_readable_once_for_a_batch_of_events(self, two: tuple[Engine, Engine]) -> None:
        pair = Pair(*two)
        near, far = pair.open()
        run(*two)
        assert not select.select(two, [], [], 0)[0]
        heard: list[int] = []
        far.on_event = heard.append
        near.write(b"x")
        assert select.select(two, [], [], 10)[0] == [two[1]]
        assert two[1].run_pass() == 1
        assert heard == [READABLE]
        run(*two)
        assert not select.select(two, [], [], 0)[0]

    @aio
    async def test_under_a_loop(self) -> None:
        engine, loop = Engine(thread="test"), asyncio.get_running_loop()
        loop.add_reader(engine.fileno(), engine.run_pass)
        pair = Pair(engine)
        stream = pair.a.open_stream()
        stream.write(b"hello")
        await eventually(lambda: pair.heard_b.streams)
        far = pair.heard_b.streams[0]
        await eventually(lambda: far.readable)
        assert far.read() == b"hello"
        loop.remove_reader(engine.fileno())
        engine.close()

    def test_timers_go_off(self, two: tuple[Engine, Engine]) -> None:
        pair = Pair(*two, keepalive=0.02, keepalive_timeout=0.02)
        run(*two)
        sent = pair.a.stats.bytes_out
        until(lambda: pair.a.stats.bytes_out > sent, *two)
        assert not pair.heard_a.closed

    def test_python_gets_in_while_bulk_keeps_it_busy(self, two: tuple[Engine, Engine]) -> None:
        first, _ = two
        busy, quiet = Pair(first), Pair(first)
        near, far = busy.open()
        small, other = quiet.open()
        end = time.monotonic() + 0.5
        asked = 0
        while time.monotonic() < end:
            near.write(bytes(200_000))
            drain(far)
            small.write(b"x")
            asked += 1
        settle(first)
        assert len(drain(other)) == asked


class TestMoving:
    @pytest.mark.parametrize("loaded", [False, True])
    def test_circuits_across_engines_carry_every_byte(self, two: tuple[Engine, Engine], loaded: bool) -> None:
        """`loaded`: bytes are under way on every link while others are joined, moved, and joined again."""
        ends = Engine()
        dice = random.Random(3)
        blob = dice.randbytes(1 << 20)
        circuits = []
        for i in range(MANY):
            circuits.append(Circuit(ends, two[i % 2], two[i // 2 % 2]))
            if not loaded:
                circuits[-1].join()
        sent, got = [0] * MANY, [0] * MANY
        written, read = [[hashlib.sha256() for _ in range(MANY)] for _ in range(2)]
        waiting = list(circuits) if loaded else []

        def move() -> bool:
            if waiting and dice.random() < 0.1:
                waiting.pop(dice.randrange(len(waiting))).join()
            for i, circuit in enumerate(circuits):
                at = sent[i] % 900_000
                chunk = blob[at : at + min(dice.choice([1, 1000, 60_000]), SIZE - sent[i])]
                taken = circuit.near.write(chunk) if chunk else 0
                written[i].update(chunk[:taken])
                sent[i] += taken
                data = drain(circuit.far)
                read[i].update(data)
                got[i] += len(data)
            return min(got) == SIZE

        until(move, ends, *two, seconds=40)
        assert [w.digest() for w in written] == [r.digest() for r in read]
        for circuit in circuits:
            circuit.near.close_write()
            circuit.far.close_write()
        until(lambda: all(circuit.results for circuit in circuits), ends, *two)
        assert {c.results[0] for c in circuits} == {SpliceResult("closed", SIZE, 0)}
        assert two[0].load[0] == two[1].load[0] == 0
        ends.close()

    def test_a_link_alone_goes_to_the_circuits_and_the_few_to_the_many(
        self, two: tuple[Engine, Engine]
    ) -> None:
        ends, (first, second) = Engine(), two
        star = Pair(first, ends)
        spokes = [Pair(first, ends) for _ in range(3)]
        for spoke in spokes:
            splice(star.a.open_stream(), spoke.a.open_stream(), on_done=None)
        lone = Pair(second, ends)
        splice(lone.a.open_stream(), star.a.open_stream(), on_done=None)
        assert lone.a.engine is first
        few = [Pair(second, ends) for _ in range(2)]
        splice(few[0].a.open_stream(), few[1].a.open_stream(), on_done=None)
        assert {pair.a.engine for pair in few} == {second}
        splice(star.a.open_stream(), few[0].a.open_stream(), on_done=None)
        assert {pair.a.engine for pair in few} == {first}
        assert first.load == (6, 7)
        assert second.load == (0, 0)
        assert len(first.links) == 7
        assert len(first.splices) == 6
        assert not second.links
        ends.close()

    def test_circuits_of_separate_peers_spread_over_the_engines(self, two: tuple[Engine, Engine]) -> None:
        ends, (first, second) = Engine(), two
        for _ in range(10):  # all links on one side, as after the circuits of the other ended
            a, b = Pair(first, ends), Pair(first, ends)
            splice(a.a.open_stream(), b.a.open_stream(), on_done=None)
        assert sorted([first.load[0], second.load[0]]) in ([4, 6], [5, 5])
        ends.close()

    def test_an_engine_with_a_thread_takes_them_from_one_without(self) -> None:
        loop = Engine()
        threaded = Engine(thread="test", beside=loop)
        a, b = Pair(loop), Pair(threaded)
        splice(a.a.open_stream(), b.a.open_stream(), on_done=None)
        assert a.a.engine is b.a.engine is threaded
        threaded.close()
        loop.close()

    def test_deadlines_limits_and_events_move_along(self, two: tuple[Engine, Engine]) -> None:
        ends, (first, second) = Engine(), two
        hub = [Pair(second, ends) for _ in range(4)]
        for pair in hub[1:]:
            splice(hub[0].a.open_stream(), pair.a.open_stream(), on_done=None)
        late = Circuit(ends, first, first)
        late.join(deadline_ns=time.monotonic_ns() + 300_000_000, limit_a_to_b=1000)
        heard: list[int] = []
        stream, peer = late.left.open()
        peer.on_event = heard.append
        stream.write(b"noted here, delivered there")
        until(lambda: peer.readable, ends)
        splice(hub[0].a.open_stream(), late.left.b.open_stream(), on_done=None)
        assert late.left.b.engine is late.right.a.engine is second
        until(lambda: heard and late.results, ends, first, second)
        assert heard == [READABLE]
        assert late.results[0].reason == "deadline"
        ends.close()

    def test_what_waits_for_tokens_waits_there_too(self, two: tuple[Engine, Engine]) -> None:
        ends, (first, second) = Engine(), two
        hub = [Pair(second, ends) for _ in range(4)]
        for pair in hub[1:]:
            splice(hub[0].a.open_stream(), pair.a.open_stream(), on_done=None)
        shaped = Circuit(ends, first, first)
        bucket = Bucket(200_000, 10_000)
        shaped.join(buckets=[bucket])
        shaped.near.write(bytes(50_000))
        until(lambda: bucket.waiting, ends)
        splice(hub[0].a.open_stream(), shaped.left.b.open_stream(), on_done=None)
        assert shaped.left.b.engine is second
        until(lambda: shaped.far.readable == 50_000, ends, first, second)
        ends.close()

    def test_engines_apart_join_nothing(self) -> None:
        one, other = Engine(thread="test-0"), Engine(thread="test-1")
        a, b = Pair(one), Pair(other)
        with pytest.raises(UsageError, match="beside"):
            splice(a.a.open_stream(), b.a.open_stream(), on_done=None)
        one.close()
        other.close()


class TestTheEnd:
    def test_an_engine_closed_with_circuits_under_way(self, two: tuple[Engine, Engine]) -> None:
        ends, (first, second) = Engine(), two
        circuits = [Circuit(ends, first, second) for _ in range(4)]
        for circuit in circuits:
            circuit.join()
            circuit.near.write(bytes(200_000))
        for _ in range(20):
            ends.run_pass()
        first.close()
        second.close()
        assert all(c.results[0].reason in ("link", "cancelled", "reset") for c in circuits)
        assert not first.links
        assert not second.links
        with pytest.raises(ConnectionClosed):
            circuits[0].a.link.open_stream()
        until(lambda: all(c.left.heard_a.closed for c in circuits), ends)
        ends.close()

    def test_links_closed_and_streams_reset_while_the_threads_pass(self, two: tuple[Engine, Engine]) -> None:
        ends, dice = Engine(), random.Random(5)
        for _ in range(30):
            circuit = Circuit(ends, *two)
            held: list[object] = [circuit.join()]
            circuit.near.write(bytes(dice.choice([100, 250_000])))
            for _ in range(dice.randrange(4)):
                ends.run_pass()
            dice.choice(
                [
                    circuit.left.b.abort,
                    circuit.right.a.close,
                    circuit.near.reset,
                    circuit.far.reset,
                    circuit.left.a.abort,
                    held.clear,
                    held[0].cancel,  # type: ignore[attr-defined]
                ]
            )()
        settle(ends, *two)
        ends.close()

    def test_dropped_it_ends_its_thread(self) -> None:
        engine: Engine | None = Engine(thread="test-dropped")
        pair: Pair | None = Pair(engine)  # type: ignore[arg-type]
        streams: list[LinkStream] = [*pair.open()]  # type: ignore[union-attr]
        engine = pair = None
        streams.clear()
        gc.collect()
        assert "test-dropped" not in thread_names()

    def test_a_wrapper_collected_by_another_thread(self, two: tuple[Engine, Engine]) -> None:
        pair = Pair(*two)
        streams = [pair.open() for _ in range(50)]
        nears = [near for near, _ in streams]
        for _, far in streams:
            far.on_event = lambda _, far=far: None
        del far, _, streams
        collector = threading.Thread(target=gc.collect)
        collector.start()
        collector.join()
        until(lambda: all(near.is_reset for near in nears), *two)

    def test_a_forked_child_finds_it_closed_and_the_parent_goes_on(self, two: tuple[Engine, Engine]) -> None:
        pair = Pair(*two)
        near, far = pair.open()
        near.write(bytes(100_000))
        child = os.fork()
        if child == 0:
            os._exit(0 if all(e.closed and not e.links.clear() for e in two) and near.id == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        until(lambda: far.readable == 100_000, *two)
        near.write(b"on")
        until(lambda: far.readable == 100_002, *two)

    def test_an_interpreter_that_ends_without_closing_it(self) -> None:
        program = (
            "from flare._core.engine import Engine\n"
            "from tests.support.mux import Pair\n"
            "engine = Engine(thread='data')\n"
            "pair = Pair(engine)\n"
            "near, far = pair.open()\n"
            "near.write(bytes(200_000))\n"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-X", "faulthandler", "-c", program], check=True, timeout=55, env=env)
