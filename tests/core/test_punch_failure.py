"""The punch that comes to nothing, and its clock."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from flare._core.punch import (
    MAX_AHEAD_NS,
    MAX_TARGETS,
    MAX_TIMEOUT_NS,
    PunchAttemptFailed,
    PunchResult,
    monotonic_ns,
    punch,
    sleep_until_ns,
)
from flare.errors import PunchFailed, UsageError
from tests.core.punching import (
    HOST,
    MS,
    PEER,
    SECOND,
    alarm,
    free_port,
    listener,
    shared,
    soon,
)

pytestmark = pytest.mark.usefixtures("every_descriptor_is_closed")


class TestClock:
    def test_is_the_monotonic_clock(self) -> None:
        before = time.monotonic_ns()
        now = monotonic_ns()
        assert before <= now <= time.monotonic_ns()

    @pytest.mark.parametrize("ahead", [0, 10_000, 299_000, 301_000, 5 * MS])
    def test_sleeps_till_the_deadline_and_never_less(self, ahead: int) -> None:
        deadline = monotonic_ns() + ahead
        sleep_until_ns(deadline)
        assert 0 <= monotonic_ns() - deadline < SECOND

    def test_a_deadline_in_the_past_returns_at_once(self) -> None:
        start = monotonic_ns()
        sleep_until_ns(start - SECOND)
        sleep_until_ns(0)
        sleep_until_ns(-1)
        assert monotonic_ns() - start < SECOND

    def test_sleeps_and_spins_without_the_gil(self, threads: ThreadPoolExecutor) -> None:
        sleeping = threads.submit(sleep_until_ns, soon(50))
        turns = 0
        while not sleeping.done():
            turns += 1
        assert turns > 1000

    def test_a_signal_handler_may_end_the_sleep(self) -> None:
        with alarm(), pytest.raises(InterruptedError):
            sleep_until_ns(soon(5000))


class TestFailure:
    def test_says_a_sentence_per_target(self) -> None:
        port, refused = free_port(), free_port(PEER)
        targets = [
            (PEER, refused),
            (HOST, port),
            ("198.51.100.1", 9),
            (PEER, 0),
            (PEER, refused),
            ("0.0.0.0", 9),
        ]
        with pytest.raises(PunchAttemptFailed) as caught:
            punch((HOST, port), targets, soon(), timeout_ns=50 * MS)
        errors = caught.value.errors
        assert "refused" in errors[0]
        assert errors[1:] == (
            f"127.0.0.1:{port} is our own address",
            "198.51.100.1:9 cannot be dialled: Invalid argument",
            "127.0.0.2:0 has port 0",
            f"127.0.0.2:{refused} was given twice",
            "0.0.0.0:9 is no address of anybody",
        )
        assert caught.value.reason == "; ".join(errors)
        assert isinstance(caught.value, PunchFailed)

    def test_ends_at_once_when_no_target_can_be_dialled(self) -> None:
        start = monotonic_ns()
        with pytest.raises(PunchAttemptFailed, match="Invalid argument"):
            punch((HOST, free_port()), [("198.51.100.1", 9)], start, timeout_ns=5 * SECOND)
        assert monotonic_ns() - start < SECOND

    def test_a_port_that_somebody_does_not_share(self) -> None:
        with socket.create_server((HOST, 0)) as selfish, pytest.raises(PunchAttemptFailed, match="in use"):
            punch(selfish.getsockname(), [(PEER, 9)], soon(), timeout_ns=SECOND)

    @pytest.mark.parametrize("timeout_ms", [1, 150])
    def test_times_out(self, timeout_ms: int) -> None:
        deadline = soon()
        with pytest.raises(PunchAttemptFailed):
            punch((HOST, free_port()), [(PEER, free_port(PEER))], deadline, timeout_ns=timeout_ms * MS)
        assert timeout_ms * MS <= monotonic_ns() - deadline < timeout_ms * MS + SECOND

    @pytest.mark.parametrize(
        "cancel_ms", [0, 50, 300], ids=["at the start", "while waiting", "while punching"]
    )
    def test_is_cancelled(self, threads: ThreadPoolExecutor, cancel_ms: int) -> None:
        cancel = os.eventfd(0)
        start = monotonic_ns()
        waiting: Future[PunchResult] = threads.submit(
            punch,
            (HOST, free_port()),
            [(PEER, free_port(PEER))],
            start + 200 * MS,
            timeout_ns=30 * SECOND,
            cancel_fd=cancel,
        )
        sleep_until_ns(start + cancel_ms * MS)
        os.eventfd_write(cancel, 1)
        with pytest.raises(PunchAttemptFailed, match=r"^cancelled$"):
            waiting.result(2)
        os.close(cancel)

    def test_a_signal_handler_may_end_it(self) -> None:
        with alarm(), pytest.raises(InterruptedError):
            punch((HOST, free_port()), [(PEER, free_port(PEER))], soon(), timeout_ns=30 * SECOND)

    def test_a_listener_closed_meanwhile_costs_the_accepts_only(self, threads: ThreadPoolExecutor) -> None:
        port, peer_port = free_port(), free_port(PEER)
        ours = listener(HOST, port)
        waiting = threads.submit(
            punch, (HOST, port), [(PEER, peer_port)], soon(), timeout_ns=2 * SECOND, listener_fd=ours.fileno()
        )
        time.sleep(0.1)
        ours.shutdown(socket.SHUT_RDWR)
        with listener(PEER, peer_port):
            result = waiting.result(3)
        ours.close()
        os.close(result.fd)
        assert result.how == "connect"


class TestBadArguments:
    @pytest.mark.parametrize(
        "address",
        [
            "127.0.0.1",
            None,
            (),
            ("127.0.0.1",),
            (None, 80),
            (b"1.2.3.4", 80),
            ("localhost", 80),
            ("1.2.3", 80),
            ("1.2.3.4\0", 80),
            ("1.2.3.4", -1),
            ("1.2.3.4", 65536),
            ("1.2.3.4", "80"),
            ("1.2.3.4", 80.5),
            ("fe80::1%nosuch", 80),
            ("::1", 80, 0, -1),
        ],
    )
    def test_addresses(self, address: Any) -> None:
        for local, target in (((HOST, 4001), address), (address, (PEER, 4001))):
            with pytest.raises(UsageError):
                punch(local, [target], soon(), timeout_ns=SECOND)

    def test_number_of_targets(self) -> None:
        with pytest.raises(UsageError, match="no target to punch"):
            punch((HOST, 4001), [], soon(), timeout_ns=SECOND)
        targets = [(f"127.0.1.{i}", free_port()) for i in range(MAX_TARGETS + 1)]
        with pytest.raises(UsageError, match="more than 64"):
            punch((HOST, free_port()), targets, soon(), timeout_ns=SECOND)
        with pytest.raises(PunchAttemptFailed) as caught:
            punch((HOST, free_port()), targets[:-1], soon(), timeout_ns=9 * MS)
        assert caught.value.attempts == MAX_TARGETS

    def test_times(self) -> None:
        here, there = (HOST, free_port()), [(PEER, 4001)]
        for timeout in (0, -1, MAX_TIMEOUT_NS + 1):
            with pytest.raises(UsageError, match="timeout"):
                punch(here, there, soon(), timeout_ns=timeout)
        with pytest.raises(UsageError, match="60 s ahead"):
            punch(here, there, monotonic_ns() + MAX_AHEAD_NS + SECOND, timeout_ns=SECOND)
        for rtt in (-1, MAX_TIMEOUT_NS + 1):
            with pytest.raises(UsageError, match="round trip"):
                punch(here, there, soon(), timeout_ns=SECOND, rtt_ns=rtt)

    def test_the_longest_wait_is_allowed(self) -> None:
        cancel = os.eventfd(1)
        far = monotonic_ns() + MAX_AHEAD_NS
        with pytest.raises(PunchAttemptFailed, match="cancelled"):
            punch((HOST, free_port()), [(PEER, 4001)], far, timeout_ns=MAX_TIMEOUT_NS, cancel_fd=cancel)
        os.close(cancel)

    def test_listeners(self) -> None:
        with listener(HOST) as blocking, shared(HOST) as silent, socket.socket(type=socket.SOCK_DGRAM) as udp:
            blocking.setblocking(True)
            here = blocking.getsockname()
            read, write = os.pipe()
            for fd in (blocking.fileno(), silent.fileno(), udp.fileno(), read, 1 << 20):
                with pytest.raises(UsageError, match="no non-blocking listener"):
                    punch(here, [(PEER, 4001)], soon(), timeout_ns=SECOND, listener_fd=fd)
            os.close(read)
            os.close(write)
