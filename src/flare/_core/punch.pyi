from collections.abc import Iterable
from typing import Final, NamedTuple

from flare.errors import PunchFailed

MAX_TARGETS: Final[int]
MAX_AHEAD_NS: Final[int]
MAX_TIMEOUT_NS: Final[int]

def monotonic_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds: the clock of every deadline here."""

def sleep_until_ns(deadline_ns: int) -> None:
    """Block till `deadline_ns` without the GIL; the last 0.3 ms are spun, so that a wake-up is not late."""

class PunchResult(NamedTuple):
    """A connected TCP socket, and how it came."""

    fd: int  # non-blocking, closed on exec, the caller's to close
    how: str  # "connect", which a simultaneous open is too, or "accept"
    target_index: int  # of `targets`: an accepted one has its IP, and its port where one has that too
    remote: tuple[str, int]  # where it really leads: a NAT may have changed the port
    attempts: int  # connects made, to all targets together; 0 when the peer came before the deadline
    first_syn_lateness_ns: int  # from the deadline to the first connect; 0 when none was made
    syn_times_ns: tuple[int, ...]  # when each target's first connect was made, monotonic; 0: not at all
    errors: tuple[str, ...]  # a sentence for each target that failed, else ""
    others: tuple[tuple[int, tuple[str, int]], ...]  # accepted from elsewhere: the caller's

class PunchAttemptFailed(PunchFailed):
    """No connection by one punch: `reason` has a sentence per target, `others` as in PunchResult."""

    errors: tuple[str, ...]
    others: tuple[tuple[int, tuple[str, int]], ...]

    def __init__(
        self,
        reason: str,
        *,
        attempts: int = 0,
        errors: tuple[str, ...] = (),
        others: tuple[tuple[int, tuple[str, int]], ...] = (),
    ) -> None: ...

def punch(
    local: tuple[str, int],
    targets: Iterable[tuple[str, int]],
    deadline_ns: int,
    *,
    timeout_ns: int,
    rtt_ns: int = 0,
    listener_fd: int = -1,
    listen: bool = True,
    cancel_fd: int = -1,
    speaks_first: bool = True,
) -> PunchResult:
    """Connect from `local` to all `targets` at once at `deadline_ns` and return the socket to keep.

    Blocks without the GIL: call it in a thread. Addresses are numeric, of both families; targets of the
    other family than `local` leave from its wildcard address. The port (not 0, which is any, and another
    for each target) is listened on meanwhile, by `listener_fd` (non-blocking; it stays the caller's, who
    may go on accepting) or, with `listen`, by a listener made for it. A peer that comes before the
    deadline is taken at once. The punch ends `timeout_ns` after the deadline, or when `cancel_fd` becomes
    readable. `rtt_ns` spaces connects after failures other than a RST (0: 500 ms assumed).

    `speaks_first` must differ between the two sides, since several pairs of addresses may connect at
    nearly the same time and both sides must keep the same one: the side that sends first (the client of
    the handshake that follows) keeps the socket that completed first, the other waits for the socket
    that the first bytes come on, or three round trips. Sockets not kept are reset.

    Raises PunchAttemptFailed; UsageError for a bad address, more than MAX_TARGETS targets, a deadline
    more than MAX_AHEAD_NS ahead, or a timeout not in 1 to MAX_TIMEOUT_NS.
    """
