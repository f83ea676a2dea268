# A link as the pass sees it: a descriptor (or none, for a memory link), records, and a yamux session.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from flare._core.aead cimport aead
from flare._core.core cimport core, node, timer
from flare._core.records cimport RECORD_HEADER_MAX
from flare._core.yamux cimport mux

cdef enum:
    SCRATCH = 256 * 1024  # one recv when a link is alone
    SCRATCH_FRONT = 64  # room before it for what has come of a record's header
    QUANTUM = 64 * 1024  # one recv, at least, when several links have much to say
    PARK_AFTER = 1000000000  # ns without a record: then a link is idle
    LATE = 1000000000  # ns that a timer may go off too late for it to say something about the peer
    CONTROL_SLACK = 256 * 1024  # of unsent control frames above the high-water mark before reading stops

cdef enum watched:
    WATCH_NONE = 0
    WATCH_READ = 1
    WATCH_WRITE = 2

cdef enum link_state:
    LINK_OPEN = 0
    LINK_CLOSING = 1  # go-away sent: waits until all is sent and the peer is gone
    LINK_DEAD = 2

cdef enum link_end:
    END_NONE = 0
    END_LOCAL  # closed or aborted here
    END_EOF
    END_TRUNCATED  # EOF within a record or frame
    END_ERRNO
    END_VIOLATION
    END_RECORD
    END_KEEPALIVE
    END_MEMORY

cdef struct link:
    mux mux  # first: a mux* is a link*
    aead key  # of what is received
    timer timer  # keepalive, or how long closing may take
    link* next
    link* previous
    node* ready_next  # in core.readable
    link* ready_previous
    link* walk_next  # while a component is walked (splice_move.pxi)
    uint64_t walk
    uint64_t place  # its slot; NO_PLACE: none
    uint8_t* partial  # a record that has begun
    size_t partial_n
    size_t partial_size  # 0: none
    uint8_t head[RECORD_HEADER_MAX]  # what has come of a record's header, when no more has
    uint8_t head_n
    uint8_t alert  # what a peer of TLS ended with
    uint8_t kind
    uint8_t state
    uint8_t end
    uint8_t watching
    uint8_t ready  # 1 + which of core.readable it is in
    uint8_t shut
    int fd  # -1: memory link, or dead
    bint in_memory
    int error  # errno, or a record_error
    int64_t received_at
    size_t last_read
    int64_t linger
    uint64_t bytes_in
    uint64_t bytes_out

cdef int core_scratch(core* c) noexcept nogil  # makes what receives go to; -1: no memory
cdef void ready_push(link* ln, int which) noexcept nogil
cdef link* ready_pop(core* c, int which) noexcept nogil
# To another engine. Both mutexes are held, core_reserve and core_scratch done; link_watch follows, once all
# that belongs to it is there.
cdef void link_move(link* ln, core* to) noexcept nogil
cdef void link_watch(link* ln) noexcept nogil
cdef link* link_new(core* c, int fd, bint initiator, int kind) noexcept nogil
cdef void link_start(link* ln) noexcept nogil  # limits are set: watch the descriptor, start keepalive
cdef void link_read(link* ln, size_t quantum) noexcept nogil
cdef void link_feed(link* ln, const uint8_t* data, size_t n) noexcept nogil
cdef void link_writable(link* ln) noexcept nogil
cdef void link_close(link* ln, uint32_t code) noexcept nogil
cdef void link_abort(link* ln) noexcept nogil
cdef void link_die(link* ln, int end, int error) noexcept nogil
