# The simultaneous open as a machine over C structs: punch.pyx fills one in, runs it without the GIL, reads it
# again.

from libc.stdint cimport int64_t, uint64_t

from flare._core.sockets cimport flare_address

cdef enum:
    MAX_TARGETS = 64  # defends descriptors, and the time from the first SYN to the last
    MAX_CANDIDATES = 64  # connected sockets to choose from
    MAX_OTHERS = 64  # strangers accepted meanwhile and handed on

cdef enum:
    MS = 1_000_000
    SPIN = 300_000  # a timer wakes a thread 50 to 200 us late: wake this early and spin the rest

cdef enum:  # of a target; see simopen.pyx
    READY
    SENT
    RESTING
    DEAD
    CONNECTED

cdef enum:
    BY_CONNECT
    BY_ACCEPT

cdef enum:  # how a run ended
    WON
    TIMED_OUT
    HOPELESS
    CANCELLED
    INTERRUPTED  # by a signal: run it again to go on
    BROKEN

cdef struct target_t:
    flare_address addr
    flare_address local
    int fd
    int state
    int error  # of the last failure
    bint is_self
    int connects
    int refused
    int64_t first_syn
    int64_t last_syn
    int64_t retry_at

cdef struct candidate_t:
    int fd
    int how
    int target
    flare_address remote

cdef struct stranger_t:
    int fd
    flare_address remote

cdef struct punch_t:
    target_t targets[MAX_TARGETS]
    int target_n
    candidate_t candidates[MAX_CANDIDATES]
    int candidate_n
    stranger_t others[MAX_OTHERS]
    int other_n
    int winner
    int listeners[2]
    bint own_listeners
    int listener_error
    int poll_error
    int cancel_fd
    int timer_fd
    bint speaks_first
    bint fired
    int64_t deadline
    int64_t end
    int64_t rtt
    int64_t settle_at
    uint64_t random

# Runs till the punch ends; every descriptor stays in `p`, the winner's too.
cdef int simopen_run(punch_t* p) noexcept nogil
# Closes all that `p` holds and made itself.
cdef void simopen_close(punch_t* p) noexcept nogil
