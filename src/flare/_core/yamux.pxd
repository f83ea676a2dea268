# yamux: frames, windows, the table of streams (specs/yamux/README.md). It reads decrypted bytes and writes
# frames into the output buffer of its link; it knows no socket.
#
# What a stream holds
#   rx       bytes received and not yet read, at most `window` of them
#   credit   bytes the peer may still send: window = credit + rx.size + what was read and not yet given back
# There is no send buffer per stream: stream_write() copies into the link's output buffer what the peer's
# window, the link's room and the stream's turn allow. A stream that finds no room waits its turn in the mux's
# queue, control streams first.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from flare._core.core cimport core, node
from flare._core.queue cimport queue
from flare._core.records cimport outbox

cdef enum:
    HEADER = 12
    INITIAL_WINDOW = 256 * 1024
    TURN = 64 * 1024  # what a stream may write before the next one has its turn
    PINGS = 8  # of ours, unanswered at once
    PONG_BURST = 64  # replies to pings: so many at once
    PONG_INTERVAL = 10000000  # ns, and then one per
    RTT_FRESH = 10000000000  # ns a measured round trip is believed
    PROMISED = 2000000  # ns that room is kept for a stream of Python's, where its loop runs beside the passes

cdef enum frame_type:
    TYPE_DATA = 0
    TYPE_WINDOW = 1
    TYPE_PING = 2
    TYPE_GOAWAY = 3

cdef enum frame_flags:
    FLAG_SYN = 1
    FLAG_ACK = 2
    FLAG_FIN = 4
    FLAG_RST = 8

cdef enum goaway_code:
    GOAWAY_NORMAL = 0
    GOAWAY_PROTOCOL = 1
    GOAWAY_INTERNAL = 2

cdef enum violation:
    OBEYED = 0
    BAD_VERSION
    BAD_TYPE
    BAD_FLAGS
    BAD_STREAM_ZERO
    BAD_SESSION_ID
    BAD_PARITY
    BAD_SYN_REUSE
    BAD_UNKNOWN
    BAD_WINDOW  # data beyond our window
    BAD_CREDIT  # their window beyond 32 bits
    OUT_OF_MEMORY

cdef enum stream_event:
    READABLE = 1
    WRITABLE = 2
    CLOSED = 4

cdef enum mux_event:
    MUX_ACCEPT = 1
    MUX_CLOSED = 2
    MUX_GOAWAY = 4
    MUX_PONG = 8
    MUX_OUTPUT = 16

# What a splice hangs into a stream in place of events for Python. Any of them may end any stream or link.
cdef struct stream_hooks:
    int (*data)(stream* s, const uint8_t* data, size_t n) noexcept nogil  # -1: no memory
    void (*fin)(stream* s) noexcept nogil  # the peer half-closed, after its last byte
    void (*writable)(stream* s) noexcept nogil
    void (*ended)(stream* s) noexcept nogil  # reset, or its link is gone

cdef struct stream:
    node node
    mux* mux
    stream* table_next
    stream* wait_next
    stream* accept_next
    const stream_hooks* hooks
    void* hooked
    queue rx
    int64_t epoch  # when the window was last given back
    uint64_t send_window
    uint32_t id
    uint32_t window
    uint32_t credit
    uint32_t allowance  # what is left of its turn
    uint8_t control
    uint8_t inbound
    uint8_t in_table
    uint8_t in_wait
    uint8_t wants_write  # a WRITABLE is owed
    uint8_t syn_due
    uint8_t ack_due
    uint8_t unacked  # counted in mux.unacked
    uint8_t read_closed  # FIN received
    uint8_t write_closed  # FIN sent
    uint8_t reset  # by either side
    uint8_t reset_here
    uint8_t lost  # the link is gone
    uint8_t discards  # what arrives is dropped
    uint8_t awaits_accept

cdef struct ping_slot:
    uint32_t id
    int64_t sent  # 0: free
    int64_t rtt  # 0: unanswered

cdef struct mux_limits:
    uint32_t max_window
    uint64_t max_receive
    uint64_t all_receive  # by all sessions of the process: what waits to be read,
    uint64_t all_growth  # ... and what windows grew by
    uint32_t max_streams
    uint32_t backlog
    size_t high_water
    int64_t keepalive
    int64_t keepalive_timeout

cdef struct mux:
    node node
    core* core
    void (*flush_now)(mux* m) noexcept nogil  # sends what it can; may end the link
    outbox out
    mux_limits limits
    uint8_t header[HEADER]
    uint8_t header_n
    uint8_t cur_fin
    uint8_t initiator
    uint8_t dead  # the link is gone: nothing goes in or out
    uint8_t blocked  # the socket takes no more for now
    uint8_t goaway_sent
    uint8_t goaway_received
    uint8_t paused  # by link_io: over a hard cap
    uint32_t goaway_code
    uint32_t left  # of the current DATA frame's payload
    stream* cur  # whose; NULL: nobody's
    stream** table
    uint32_t table_size  # a power of two
    uint32_t streams
    uint32_t inbound
    uint32_t unacked[2]  # opened and not yet acknowledged: [0] our own, [1] the peer's
    uint32_t refused
    uint64_t next_id
    uint32_t peer_id  # the largest it opened
    uint64_t reserved_pass
    int64_t reserved_until  # ns; threaded
    size_t reserved  # in that pass: room that was promised to streams of Python's, which write after it
    uint64_t window_total
    uint64_t grown  # of that, beyond the windows that streams begin with
    uint64_t seed  # odd: which ids share a bucket is not for the peer to choose
    uint64_t strays  # bytes that the peer may have sent before it heard that their streams are gone
    uint64_t buffered  # bytes in all rx queues
    stream* wait_head[2]  # [0] control, [1] the others
    stream* wait_tail[2]
    stream* accept_head
    stream* accept_tail
    ping_slot pings[PINGS]
    ping_slot own_ping  # for the round trip and keepalive
    uint32_t ping_id
    int64_t rtt
    int64_t rtt_at
    int64_t pong_time  # token bucket, as the time up to which replies are spent
    uint32_t refs  # structs and frames that point here: streams, and the link itself
    void* joined  # the ways of splices that begin here
    uint32_t wrappers  # of Python's that live, of the link and of its streams: each counts in core.refs
    int violation

cdef void mux_init(mux* m, core* c, bint initiator) noexcept nogil
# -1: m.violation, or the link ended meanwhile
cdef int mux_input(mux* m, const uint8_t* data, size_t n) noexcept nogil
cdef stream* mux_open(mux* m) noexcept nogil  # NULL: no memory. The caller checked that it may.
# the next inbound stream that Python has not seen; NULL: none
cdef stream* mux_accepted(mux* m) noexcept nogil
cdef void mux_goaway(mux* m, uint32_t code) noexcept nogil
cdef int mux_ping(mux* m, ping_slot* slot) noexcept nogil
# Ends every stream; the link calls it once.
cdef void mux_end(mux* m) noexcept nogil
# Gives those that wait for room their turns, until there is none.
cdef void mux_serve(mux* m) noexcept nogil
cdef void mux_park(mux* m) noexcept nogil  # gives back what a session without streams does not need
cdef bint mux_waiting(const mux* m) noexcept nogil

cdef size_t stream_write(stream* s, const uint8_t* data, size_t n) noexcept nogil  # how many were taken
cdef size_t stream_peek(stream* s, const uint8_t** data) noexcept nogil  # the first contiguous bytes of rx
cdef void stream_skip(stream* s, size_t n) noexcept nogil  # drops n bytes of rx, and gives credit
# copies up to n bytes and keeps them
cdef size_t stream_copy(stream* s, uint8_t* out, size_t n) noexcept nogil
cdef int stream_store(stream* s, const uint8_t* data, size_t n) noexcept nogil  # appends to rx; -1: no memory
cdef void stream_credit(stream* s) noexcept nogil  # after bytes went past rx
cdef void stream_close_write(stream* s) noexcept nogil
cdef void stream_reset(stream* s) noexcept nogil
cdef void stream_discard(stream* s) noexcept nogil
