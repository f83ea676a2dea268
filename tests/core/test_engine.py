"""The engine under an event loop, its callbacks and counters, and who may die before whom."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable

import pytest

from flare._core.engine import Engine
from flare._core.link import READABLE, LinkStream, PlainRecords
from flare._core.splice import Splice, splice
from flare.config import MuxLimits
from flare.errors import ConnectionClosed, UsageError
from tests.support.aio import aio, eventually
from tests.support.mux import DATA, SYN, Bare, Heard, Limits, Pair, drain, frame, run, run_until


class TestUnderALoop:
    @aio
    async def test_one_reader_serves_all_links(self) -> None:
        loop, engine = asyncio.get_running_loop(), Engine()
        loop.add_reader(engine.fileno(), engine.run_pass)
        pairs = [Pair(engine) for _ in range(3)]
        for i, pair in enumerate(pairs):
            stream = pair.a.open_stream()
            stream.write(b"%d" % i)
            await eventually(lambda pair=pair: pair.heard_b.streams)
            far = pair.heard_b.streams[0]
            await eventually(lambda far=far: far.readable)
            assert far.read() == b"%d" % i
        loop.remove_reader(engine.fileno())
        engine.close()

    @aio
    async def test_on_wake_saves_the_descriptor(self) -> None:
        loop, engine = asyncio.get_running_loop(), Engine()
        woken = []

        def wake() -> None:
            woken.append(1)
            loop.call_soon(engine.run_pass)

        engine.on_wake = wake
        pair = Pair(engine)
        stream = pair.a.open_stream()
        for _ in range(10):
            stream.write(b"x")
        assert len(woken) == 1, "once per pass"
        await asyncio.sleep(0)
        assert engine.counters["sends"] == 1, "and one send for all of it"
        engine.close()

    @aio
    async def test_timers_wake_the_loop(self) -> None:
        loop, engine = asyncio.get_running_loop(), Engine()
        loop.add_reader(engine.fileno(), engine.run_pass)
        x, y = socket.socketpair()
        limits = Limits(keepalive=0.02, keepalive_timeout=0.02)
        heard = Heard(engine.attach(y.detach(), record=PlainRecords(), initiator=True, limits=limits))
        with x:
            await eventually(lambda: heard.closed)
        loop.remove_reader(engine.fileno())
        engine.close()


class TestPasses:
    def test_a_pass_waits_for_its_timeout_and_no_longer(self) -> None:
        engine, waits = Engine(), []
        for _ in range(5):  # a signal may end one early
            start = time.monotonic()
            assert engine.run_pass(20_000_000) == 0
            waits.append(time.monotonic() - start)
        assert 0.02 <= max(waits) < 2
        engine.close()

    def test_the_descriptor_is_readable_only_when_there_is_work(self) -> None:
        engine = Engine()
        assert not select.select([engine], [], [], 0)[0]
        pair = Pair(engine)
        pair.a.open_stream()
        assert select.select([engine], [], [], 0)[0]
        run(engine, passes=5)
        assert not select.select([engine], [], [], 0)[0]
        engine.close()

    def test_another_thread_may_use_a_link_while_a_pass_waits(self) -> None:
        engine = Engine()
        pair = Pair(engine)
        near, far = pair.open()
        timer = threading.Timer(0.05, lambda: near.write(b"from a thread"))
        timer.start()
        deadline = time.monotonic() + 5
        while not far.readable and time.monotonic() < deadline:
            engine.run_pass(5_000_000_000)
        assert far.read() == b"from a thread"
        assert time.monotonic() < deadline
        timer.join()
        engine.close()

    def test_a_pass_within_a_callback_does_nothing(self) -> None:
        engine = Engine()
        pair = Pair(engine)
        near, far = pair.open()
        inner = []
        far.on_event = lambda _: inner.append(engine.run_pass())
        near.write(b"x")
        run(engine)
        assert inner == [0]
        engine.close()

    def test_what_a_callback_raises_goes_to_the_hook_and_the_rest_is_called(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raised: list[BaseException | None] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda u: raised.append(u.exc_value))
        engine = Engine()
        pair = Pair(engine)
        first, second = pair.open(), pair.open()
        events: list[int] = []
        first[1].on_event = lambda _: 1 / 0
        second[1].on_event = events.append
        first[0].write(b"x")
        second[0].write(b"x")
        run(engine)
        assert [type(e) for e in raised] == [ZeroDivisionError]
        assert events == [READABLE]
        engine.close()

    def test_an_interrupt_in_a_callback_comes_out_after_the_others_had_their_call(self) -> None:
        engine = Engine()
        pair = Pair(engine)
        first, second = pair.open(), pair.open()
        events: list[int] = []

        def interrupted(_: int) -> None:
            raise KeyboardInterrupt

        first[1].on_event, second[1].on_event = interrupted, events.append
        first[0].write(b"x")
        second[0].write(b"x")
        with pytest.raises(KeyboardInterrupt):
            run(engine)
        assert events == [READABLE]
        first[1].on_event = None
        engine.close()

    def test_more_ready_links_than_one_pass_takes(self) -> None:
        engine = Engine()
        pairs = [Pair(engine, noise=False) for _ in range(150)]
        streams = [pair.a.open_stream() for pair in pairs]
        for stream in streams:
            stream.write(b"x")
        run_until(lambda: all(p.heard_b.streams for p in pairs), engine, passes=20)
        engine.close()

    def test_limits_come_from_the_config(self) -> None:
        engine = Engine()
        link = engine.attach_memory(
            record=PlainRecords(), initiator=True, limits=MuxLimits(send_high_water=1000)
        )
        assert link.open_stream().write(bytes(1000)) == 250 + 31, "a quarter and a 32nd, for bulk"
        engine.close()


class TestClose:
    def test_every_link_is_told_and_every_descriptor_given_up(self) -> None:
        before = descriptors()
        engine = Engine()
        pair = Pair(engine)
        stream = pair.a.open_stream()
        engine.close()
        engine.close()
        assert pair.heard_a.closed == pair.heard_b.closed == [None]
        assert engine.fileno() == -1
        assert descriptors() == before
        with pytest.raises(ConnectionClosed):
            stream.write(b"x")
        with pytest.raises(UsageError, match="closed"):
            engine.attach_memory(record=None, initiator=True)
        assert engine.run_pass() == 0

    def test_attach_to_a_closed_engine_closes_the_descriptor(self) -> None:
        engine = Engine()
        engine.close()
        x, y = socket.socketpair()
        fd = y.detach()
        with pytest.raises(UsageError, match="closed"):
            engine.attach(fd, record=PlainRecords(), initiator=True)
        assert x.recv(1) == b""
        x.close()

    def test_within_a_callback(self) -> None:
        engine = Engine()
        pair = Pair(engine)
        near, far = pair.open()
        far.on_event = lambda _: engine.close()
        near.write(b"x")
        run(engine)
        assert engine.closed
        assert pair.heard_a.closed == [None]

    def test_an_engine_that_is_dropped_gives_up_its_descriptors(self) -> None:
        before = descriptors()
        pair = Pair(Engine())
        streams = pair.open()
        splice(pair.a.open_stream(), pair.b.open_stream(), on_done=None)
        del pair, streams
        gc.collect()
        assert descriptors() == before


class TestLifetimes:
    """Wrappers die in any order, while their streams are in any state."""

    @pytest.mark.parametrize("alive", [True, False], ids=["open", "closed"])
    @pytest.mark.parametrize("spliced", [True, False], ids=["spliced", "plain"])
    def test_in_every_order(self, spliced: bool, alive: bool) -> None:
        names = ["engine", "pair", "near", "a", "far", "splice"][: 6 if spliced else 5]
        for order in itertools.permutations(names):
            held: dict[str, object] = {}
            engine = Engine()
            pair = Pair(engine, noise=False)
            near, a = pair.open()
            far, b = pair.open()
            near.write(b"unread")
            held |= {"engine": engine, "pair": pair, "near": near, "a": a, "far": far}
            if spliced:
                held["splice"] = splice(a, b, on_done=None)
            run(engine, passes=1)
            if not alive:
                engine.close()
            del engine, pair, near, a, far, b
            for name in order:
                del held[name]
                if "engine" in held:
                    held["engine"].run_pass()  # type: ignore[attr-defined]

    def test_a_wrapper_dropped_within_its_own_callback(self) -> None:
        engine = Engine()
        pair = Pair(engine)
        near, far = pair.open()
        box = [far]
        far.on_event = lambda _: box.clear()
        del far
        near.write(b"x")
        run(engine)
        assert near.is_reset
        engine.close()

    def test_an_inbound_stream_that_nobody_keeps(self) -> None:
        engine = Engine()
        pair = Pair(engine)
        pair.b.on_stream = lambda stream: None
        near = pair.a.open_stream()
        near.write(b"x")
        run(engine)
        assert near.is_reset
        engine.close()

    def test_streams_keep_working_when_only_they_are_held(self) -> None:
        engine = Engine()
        pair = Pair(engine)
        near, far = pair.open()
        del pair
        gc.collect()
        near.write(b"links belong to the engine")
        run(engine)
        assert far.read() == b"links belong to the engine"
        engine.close()

    def test_collected_as_a_cycle_in_another_thread(self) -> None:
        engine = Engine()
        pair = Pair(engine)
        streams = [pair.open() for _ in range(20)]
        for _near, far in streams:
            far.on_event = lambda _, far=far: None
        gc.collect()
        nears = [near for near, _ in streams]
        del _near, far, streams
        collector = threading.Thread(target=gc.collect)
        collector.start()
        collector.join()
        run(engine)
        assert all(near.is_reset for near in nears)
        engine.close()

    def test_a_finalizer_that_calls_back_into_the_engine(self) -> None:
        engine = Engine()
        pair = Pair(engine)

        class Owner:
            def __init__(self, stream: LinkStream) -> None:
                self.stream = stream
                self.me = self

            def __del__(self) -> None:
                self.stream.reset()

        nears = []
        for _ in range(300):
            near, far = pair.open()
            Owner(far)
            nears.append(near)
        del far
        gc.collect()
        run(engine)
        assert all(near.is_reset for near in nears)
        engine.close()

    def test_memory_does_not_grow_with_streams_that_came_and_went(self) -> None:
        engine = Engine()
        pair = Pair(engine)

        def rounds(n: int) -> int:
            for _ in range(n):
                near, far = pair.open()
                near.write(bytes(1000))
                near.close_write()
                run(engine)
                drain(far)
                far.close_write()
                run(engine)
            return rss()

        rounds(500)
        before = rounds(500)
        assert rounds(2000) - before < 2 << 20
        assert pair.a.stats.streams == pair.b.stats.streams == 0
        engine.close()

    def test_memory_does_not_grow_with_links_that_came_and_went(self) -> None:
        engine = Engine()

        def rounds(n: int) -> int:
            for i in range(n):
                pair = Pair(engine)
                _near, far = pair.open()
                far.on_event = lambda _, far=far: None
                (pair.a.abort if i % 2 else pair.b.close)()
                run(engine)
            gc.collect()
            run(engine)
            return rss()

        rounds(200)
        before = rounds(200)
        assert rounds(800) - before < 4 << 20
        assert engine.links == set()
        engine.close()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def rss() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Net:
    """A few links on two engines, and one random operation at a time on whatever there is."""

    def __init__(self, seed: int, engines: list[Engine]) -> None:
        self.dice = random.Random(seed)
        self.engines = engines
        self.pairs: list[Pair] = []
        self.streams: list[LinkStream] = []
        self.splices: list[Splice] = []
        self.acts = [self.attach, *[self.open] * 3, *[self.write] * 4, *[self.read] * 2, self.close_write]
        self.acts += [self.end, self.join, self.drop, self.lose, self.cancel]

    def act(self) -> None:
        with contextlib.suppress(OSError, UsageError, IndexError):  # a dead, spliced or missing one
            self.dice.choice(self.acts)()
        if self.dice.random() < 0.3:
            self.dice.choice(self.engines).run_pass()

    def attach(self) -> None:
        if len(self.pairs) < 6:
            a, b = self.dice.choices(self.engines, k=2)
            pair = Pair(a, b, noise=self.dice.random() < 0.5, sndbuf=self.dice.choice([0, 5000]))
            pair.a.on_stream = pair.b.on_stream = self.streams.append
            self.pairs.append(pair)

    def open(self) -> None:
        pair = self.dice.choice(self.pairs)
        self.streams.append(self.dice.choice([pair.a, pair.b]).open_stream())

    def write(self) -> None:
        self.dice.choice(self.streams).write(bytes(self.dice.choice([1, 100, 20_000, 300_000])))

    def read(self) -> None:
        self.dice.choice(self.streams).read(self.dice.choice([1, 5000, 1 << 20]))

    def close_write(self) -> None:
        self.dice.choice(self.streams).close_write()

    def end(self) -> None:
        stream = self.dice.choice(self.streams)
        self.dice.choice([stream.reset, stream.discard, lambda: stream.set_priority(True)])()

    def join(self) -> None:
        if len(self.streams) > 1:
            a, b = self.dice.sample(self.streams, 2)
            deadline = self.dice.choice([0, time.monotonic_ns() + 10**6])
            limit = self.dice.choice([0, 1000])
            self.splices.append(splice(a, b, on_done=None, limit_a_to_b=limit, deadline_ns=deadline))

    def drop(self) -> None:
        self.streams.pop(self.dice.randrange(len(self.streams) + 1))

    def lose(self) -> None:
        if self.dice.random() < 0.2:
            pair = self.pairs.pop(self.dice.randrange(len(self.pairs) + 1))
            self.dice.choice([pair.a.close, pair.b.abort, lambda: None])()

    def cancel(self) -> None:
        self.dice.choice([self.splices[-1].cancel, self.splices.pop])()

    def leave(self) -> None:
        steps: list[Callable[[], object]] = [e.close for e in self.engines]
        steps += [self.streams.clear, self.pairs.clear, self.splices.clear]
        self.dice.shuffle(steps)
        for step in steps[: self.dice.randrange(6)]:
            step()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("driven_by", ["calls", "threads", "both"])
def test_anything_in_any_order(seed: int, driven_by: str) -> None:
    """Random operations on a small net of links: nothing crashes, hangs or leaks a descriptor."""
    before = descriptors()
    first = Engine(thread=None if driven_by == "calls" else "test-0")
    second = Engine(thread="test-1" if driven_by == "threads" else None, beside=first)
    net = Net(seed, [first, second])
    del first, second
    for _ in range(3000):
        net.act()
    net.leave()
    del net
    assert descriptors() == before


def test_leftover_is_delivered_by_the_first_pass() -> None:
    with Bare() as peer:
        link = peer.engine.attach_memory(record=None, initiator=False, leftover=frame(DATA, SYN, 1, b"x"))
        heard = Heard(link)
        run(peer.engine)
        assert heard.streams[0].read() == b"x"
