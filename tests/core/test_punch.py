"""The simultaneous open on loopback: every way to a socket, and who keeps which."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flare._core.punch import (
    PunchAttemptFailed,
    monotonic_ns,
    punch,
    sleep_until_ns,
)
from tests.core.punching import (
    HOST,
    MS,
    PEER,
    SECOND,
    assert_joined,
    connect_soon,
    dual_stack_listener,
    free_port,
    listener,
    shared,
    soon,
    taken,
)

pytestmark = pytest.mark.usefixtures("every_descriptor_is_closed")


class TestConnect:
    @pytest.mark.parametrize(
        ("local", "host"), [(HOST, PEER), ("0.0.0.0", PEER), ("::1", "::1"), ("::", "::1")]
    )
    def test_meets_a_listener(self, local: str, host: str) -> None:
        port, deadline = free_port(local), soon()
        with listener(host) as peer:
            target = (host, peer.getsockname()[1])
            result = punch((local, port), [target], deadline, timeout_ns=SECOND)
            assert (result.how, result.target_index, result.remote) == ("connect", 0, target)
            assert (result.attempts, result.errors, result.others) == (1, ("",), ())
            assert result.syn_times_ns[0] - deadline == result.first_syn_lateness_ns >= 0
            with taken(result) as sock, peer.accept()[0] as far:
                assert far.getpeername()[1] == port
                assert_joined(sock, far)

    def test_the_socket_is_non_blocking_and_closed_on_exec(self) -> None:
        with listener(PEER) as peer:
            result = punch((HOST, free_port()), [peer.getsockname()], soon(), timeout_ns=SECOND)
            assert not os.get_blocking(result.fd)
            assert fcntl.fcntl(result.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            os.close(result.fd)

    def test_targets_of_both_families(self) -> None:
        port = free_port()
        with listener("::1") as peer:
            targets = [(PEER, free_port(PEER)), ("::1", peer.getsockname()[1])]
            result = punch((HOST, port), targets, soon(), timeout_ns=SECOND)
            with taken(result) as sock:
                assert result.target_index == 1
                assert sock.getsockname()[1] == port

    def test_an_ipv4_mapped_target_is_ipv4(self) -> None:
        with listener(PEER) as peer:
            target = (f"::ffff:{PEER}", peer.getsockname()[1])
            result = punch((HOST, free_port()), [target], soon(), timeout_ns=SECOND)
            with taken(result) as sock:
                assert sock.family == socket.AF_INET
                assert result.remote == peer.getsockname()

    def test_without_a_port_of_ours_it_is_any(self) -> None:
        with listener(PEER) as peer:
            result = punch((HOST, 0), [peer.getsockname()], soon(), timeout_ns=SECOND)
            with taken(result) as sock:
                assert sock.getsockname()[1] > 0

    def test_a_deadline_in_the_past_fires_at_once(self) -> None:
        with listener(PEER) as peer:
            deadline = soon(-100)
            result = punch((HOST, free_port()), [peer.getsockname()], deadline, timeout_ns=SECOND)
            os.close(result.fd)
            assert 100 * MS <= result.first_syn_lateness_ns < SECOND


class TestAccept:
    @pytest.mark.parametrize("ours", [True, False], ids=["a listener of its own", "the caller's listener"])
    def test_a_peer_that_comes_before_the_deadline(self, threads: ThreadPoolExecutor, ours: bool) -> None:
        port, peer_port = free_port(), free_port(PEER)
        with contextlib.ExitStack() as stack:
            fd = -1 if ours else stack.enter_context(listener(HOST, port)).fileno()
            waiting = threads.submit(
                punch, (HOST, port), [(PEER, peer_port)], soon(5000), timeout_ns=SECOND, listener_fd=fd
            )
            peer = stack.enter_context(connect_soon((PEER, peer_port), (HOST, port)))
            result = waiting.result(2)
            assert (result.how, result.target_index, result.remote) == ("accept", 0, (PEER, peer_port))
            assert (result.attempts, result.first_syn_lateness_ns, result.syn_times_ns) == (0, 0, (0,))
            assert not os.get_blocking(result.fd)
            assert_joined(stack.enter_context(taken(result)), peer)

    def test_from_another_port_of_the_peer(self, threads: ThreadPoolExecutor) -> None:
        """A NAT with endpoint-dependent mapping sends from a port that nobody announced."""
        port, told, real = free_port(), free_port(PEER), free_port(PEER)
        targets = [("127.0.0.3", told), (PEER, told)]
        waiting = threads.submit(punch, (HOST, port), targets, soon(5000), timeout_ns=SECOND)
        with connect_soon((PEER, real), (HOST, port)):
            result = waiting.result(2)
        os.close(result.fd)
        assert (result.how, result.target_index, result.remote) == ("accept", 1, (PEER, real))

    def test_strangers_are_handed_on(self, threads: ThreadPoolExecutor) -> None:
        port, stranger, peer_port = free_port(), free_port("127.0.0.9"), free_port(PEER)
        waiting = threads.submit(punch, (HOST, port), [(PEER, peer_port)], soon(5000), timeout_ns=SECOND)
        with connect_soon(("127.0.0.9", stranger), (HOST, port)) as unexpected:
            with connect_soon((PEER, peer_port), (HOST, port)):
                result = waiting.result(2)
            os.close(result.fd)
            ((fd, address),) = result.others
            assert address == ("127.0.0.9", stranger)
            with socket.socket(fileno=fd) as sock:
                assert_joined(sock, unexpected)

    def test_strangers_are_handed_on_when_the_punch_fails(self, threads: ThreadPoolExecutor) -> None:
        port = free_port()
        targets = [(PEER, free_port(PEER))]
        waiting = threads.submit(punch, (HOST, port), targets, soon(), timeout_ns=200 * MS)
        with connect_soon(("127.0.0.9", 0), (HOST, port)) as unexpected:
            with pytest.raises(PunchAttemptFailed) as caught:
                waiting.result(2)
            ((fd, address),) = caught.value.others
            assert address == unexpected.getsockname()
            os.close(fd)

    def test_a_dual_stack_listener_says_ipv4_addresses_as_ipv4(self, threads: ThreadPoolExecutor) -> None:
        peer_port = free_port(PEER)
        with dual_stack_listener() as dual:
            dual.setblocking(False)
            port = dual.getsockname()[1]
            waiting = threads.submit(
                punch,
                ("0.0.0.0", port),
                [(PEER, peer_port)],
                soon(5000),
                timeout_ns=SECOND,
                listener_fd=dual.fileno(),
            )
            with connect_soon((PEER, peer_port), (HOST, port)):
                result = waiting.result(2)
            os.close(result.fd)
            assert result.remote == (PEER, peer_port)

    def test_a_pair_that_the_peer_has_opened_already(self, threads: ThreadPoolExecutor) -> None:
        """connect says EADDRNOTAVAIL: the connection is on the listener."""
        port, peer_port, deadline = free_port(), free_port(PEER), soon(100)
        waiting = threads.submit(
            punch,
            (HOST, port),
            [(PEER, peer_port)],
            deadline,
            timeout_ns=SECOND,
            speaks_first=False,
            rtt_ns=SECOND,
        )
        with connect_soon((PEER, peer_port), (HOST, port)) as peer:
            sleep_until_ns(deadline + 50 * MS)
            assert not waiting.done(), "waits to be spoken to"
            peer.sendall(b"hello")
            result = waiting.result(2)
            with taken(result) as sock:
                assert (result.how, result.attempts, result.errors) == ("accept", 1, ("",))
                assert sock.recv(100) == b"hello"

    def test_without_a_listener_nobody_gets_in(self, threads: ThreadPoolExecutor) -> None:
        port, peer_port = free_port(), free_port(PEER)
        waiting = threads.submit(
            punch, (HOST, port), [(PEER, peer_port)], soon(150), timeout_ns=50 * MS, listen=False
        )
        time.sleep(0.05)
        with shared(PEER, peer_port) as peer:
            assert peer.connect_ex((HOST, port)) == errno.ECONNREFUSED
        with pytest.raises(PunchAttemptFailed):
            waiting.result(2)


class TestBothSides:
    @pytest.mark.parametrize("skew_ms", [0, 1, 5, 30, 200])
    @pytest.mark.parametrize("late", ["client", "server"])
    def test_end_with_one_connection(self, threads: ThreadPoolExecutor, skew_ms: int, late: str) -> None:
        client, server = (HOST, free_port(HOST)), (PEER, free_port(PEER))
        start = soon()
        ends = {side: start + (skew_ms * MS if side == late else 0) for side in ("client", "server")}
        a = threads.submit(punch, client, [server], ends["client"], timeout_ns=2 * SECOND)
        b = threads.submit(punch, server, [client], ends["server"], timeout_ns=2 * SECOND, speaks_first=False)
        with taken(a.result(5)) as near:
            near.sendall(b"first")
            with taken(b.result(5)) as far:
                assert far.recv(100) == b"first"
                assert_joined(near, far)


class TestRefused:
    def test_tries_again_at_once_with_jitter_till_the_peer_listens(self, threads: ThreadPoolExecutor) -> None:
        port, peer_port, deadline = free_port(), free_port(PEER), soon()
        waiting = threads.submit(punch, (HOST, port), [(PEER, peer_port)], deadline, timeout_ns=5 * SECOND)
        sleep_until_ns(deadline + 1000 * MS)
        with listener(PEER, peer_port):
            result = waiting.result(4)
        os.close(result.fd)
        rests = (monotonic_ns() - deadline) // (10 * MS)
        assert result.how == "connect"
        assert 2 <= result.attempts <= rests + 2, "rests of 10 ms or more"
        assert result.errors == ("",)

    def test_rests_between_10_and_100_ms(self) -> None:
        targets = [(PEER, free_port(PEER))]
        with pytest.raises(
            PunchAttemptFailed, match=r"127\.0\.0\.2:\d+ refused \d+ of \d+ connects"
        ) as caught:
            punch((HOST, free_port()), targets, soon(), timeout_ns=500 * MS)
        assert 1 <= caught.value.attempts <= 51, "more on an idle machine than on a busy one"

    def test_nobody_who_refused_is_asked_again_within_10_ms(self) -> None:
        targets = [(PEER, free_port(PEER)) for _ in range(8)]
        with pytest.raises(PunchAttemptFailed) as caught:
            punch((HOST, free_port()), targets, soon(), timeout_ns=9 * MS)
        assert caught.value.attempts <= 8, "one each; fewer on a machine that stalled"


class TestWhichIsKept:
    def test_the_side_that_speaks_first_keeps_the_first_and_resets_the_others(self) -> None:
        with listener(PEER) as one, listener("127.0.0.3") as two:
            targets = [one.getsockname(), two.getsockname()]
            result = punch((HOST, free_port()), targets, soon(), timeout_ns=SECOND)
            assert result.target_index == 0, "found at one look: the order of targets"
            with taken(result) as sock, one.accept()[0] as far:
                assert_joined(sock, far)
            with contextlib.suppress(BlockingIOError), two.accept()[0] as lost:
                lost.settimeout(2)
                with pytest.raises(ConnectionResetError):
                    lost.recv(1)

    def test_the_other_side_keeps_the_one_that_is_spoken_on(self, threads: ThreadPoolExecutor) -> None:
        deadline = soon()
        with listener(PEER) as one, listener("127.0.0.3") as two:
            waiting = threads.submit(
                punch,
                (HOST, free_port()),
                [one.getsockname(), two.getsockname()],
                deadline,
                timeout_ns=5 * SECOND,
                rtt_ns=SECOND,
                speaks_first=False,
            )
            sleep_until_ns(deadline + 50 * MS)
            with one.accept()[0] as first, two.accept()[0] as second:
                second.sendall(b"you")
                result = waiting.result(2)
                with taken(result) as sock:
                    assert result.target_index == 1
                    assert sock.recv(10) == b"you"
                    first.settimeout(2)
                    with pytest.raises(ConnectionResetError):
                        first.recv(1)

    def test_one_that_the_peer_dropped_is_not_kept(self, threads: ThreadPoolExecutor) -> None:
        deadline = soon()
        with listener(PEER) as one, listener("127.0.0.3") as two:
            waiting = threads.submit(
                punch,
                (HOST, free_port()),
                [one.getsockname(), two.getsockname()],
                deadline,
                timeout_ns=5 * SECOND,
                rtt_ns=100 * MS,
                speaks_first=False,
            )
            sleep_until_ns(deadline + 50 * MS)
            one.accept()[0].close()
            with two.accept()[0]:
                result = waiting.result(2)
                os.close(result.fd)
                assert result.target_index == 1
                assert monotonic_ns() - deadline >= 300 * MS, "silence: taken after three round trips"
                assert "reset by peer" in result.errors[0]


def test_two_threads_at_once_do_not_meet(threads: ThreadPoolExecutor) -> None:
    """Nothing is shared between two punches of one process."""
    barrier = threading.Barrier(4)

    def one(i: int) -> None:
        barrier.wait(5)
        with listener(PEER) as peer:
            result = punch((HOST, free_port()), [peer.getsockname()], soon(), timeout_ns=SECOND)
            with taken(result) as sock:
                assert sock.getpeername() == peer.getsockname()

    for done in [threads.submit(one, i) for i in range(4)]:
        done.result(5)
