from collections.abc import Callable
from typing import Protocol, TypedDict

from typing_extensions import Buffer

from flare._core.link import Link
from flare._core.records import RecordKeys
from flare._core.splice import Splice

class Limits(Protocol):
    """What `attach` reads of `flare.config.MuxLimits`; an attribute that is missing has the default there."""

    @property
    def max_window(self) -> int: ...
    @property
    def max_receive(self) -> int: ...
    @property
    def max_streams(self) -> int: ...
    @property
    def backlog(self) -> int: ...
    @property
    def send_high_water(self) -> int: ...
    @property
    def keepalive(self) -> float: ...
    @property
    def keepalive_timeout(self) -> float: ...
    @property
    def linger(self) -> float: ...

class Counters(TypedDict):
    """Since the engine was made: passes, system calls, wire bytes, events delivered to Python."""

    passes: int
    receives: int
    sends: int
    bytes_in: int
    bytes_out: int
    events: int

class Engine:
    """Drives links from one epoll set of its own; call `run_pass` whenever `fileno()` is readable.

    With `thread`, the name of a thread (15 bytes at most), that one makes the passes: it never takes the GIL,
    and `run_pass` only calls back for what it noted. Links of engines that stand beside each other may be
    spliced: the links that belong together move to one of them (splice_move.pxi has the rule).

    All callbacks of links, streams and splices are made from within `run_pass` (and `close`), never from the
    call that caused them. What a callback raises goes to `sys.unraisablehook`. A fork leaves the parent's
    engines alone; the child finds those with a thread closed.
    """

    links: set[Link]
    splices: set[Splice]
    on_wake: Callable[[], object] | None
    """Called, at most once per pass, when a call from Python made work; None: `fileno()` becomes readable.

    `lambda: loop.call_soon(engine.run_pass)` saves that a system call.
    """

    def __init__(self, *, thread: str | None = None, beside: Engine | None = None) -> None:
        """Raises OSError when there are no descriptors or no thread."""
    @property
    def threaded(self) -> bool: ...
    @property
    def idle(self) -> bool:
        """Nothing is ready, or waits to be sent or delivered: timers aside, only a peer can change that."""
    @property
    def load(self) -> tuple[int, int]:
        """Circuits and links that it carries now."""
    @property
    def closed(self) -> bool: ...
    @property
    def counters(self) -> Counters: ...
    def fileno(self) -> int:
        """The descriptor that is readable when `run_pass` has something to do, timers included."""
    def run_pass(self, timeout_ns: int = 0) -> int:
        """One pass without the GIL (with a thread: none), then the callbacks; returns how many.

        Waits for up to `timeout_ns` nanoseconds first, rounded up to milliseconds (below 0: for ever), or
        until a signal.
        """
    def attach(
        self,
        fd: int,
        *,
        record: RecordKeys | None,
        initiator: bool,
        leftover: Buffer = b"",
        limits: Limits | object | None = None,
    ) -> Link:
        """A link on a connected stream socket, which the engine owns from now on, also when it fails.

        `leftover` is what a handshake read beyond its end. `record=None` is PlainRecords. Raises UsageError
        when the engine is closed or the keys are in use already.
        """
    def attach_memory(
        self,
        *,
        record: RecordKeys | None,
        initiator: bool,
        leftover: Buffer = b"",
        limits: Limits | object | None = None,
    ) -> Link:
        """A link without a socket: `Link.feed`, `Link.take_output` and `Link.on_output` move its bytes."""
    def close(self) -> None:
        """Abort every link, deliver what that means to Python, and give up all descriptors."""
