# Shaping: token buckets that splices draw from. A bucket is one number, the time up to which its tokens
# are spent, so that taking from it is one atomic step: splices of several engines may share it.
#
# What a way of a splice (a `draw`) does, all of it under the lock of its engine
# - draw_allow() says how many bytes may go now. 0: it waits at the gate of a bucket that has no tokens, and
#   `resume` is called when it is its turn. Nothing is dropped: bytes that wait open no window for more.
# - draw_spend() says how many went.
#
# What waits for one bucket in one engine stands at one `gate`, with one timer. A gate pays in advance for one
# round, a turn for each that waits there, and lets all of them go when that is due. A turn is the shorter the
# more wait, whatever their engine, and engines are served in the order in which they paid.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from flare._core.core cimport core, node, pthread_mutex_t, timer

cdef enum:
    DRAWS = 6  # buckets that one splice may draw from

cdef struct bucket:
    uint32_t refs  # atomic
    uint32_t waiting  # draws at its gates, in all engines; atomic
    uint64_t rate  # bytes a second; 0: no limit. Atomic, as are the next three
    uint64_t burst  # bytes
    int64_t depth  # ns in which `burst` fills
    int64_t spent  # monotonic ns
    pthread_mutex_t mutex  # guards `gates`
    gate* gates

cdef struct gate:
    node node  # first: a node* is a gate*
    core* core
    bucket* bucket
    gate* next  # of the bucket
    timer timer
    draw* head
    draw* tail
    uint32_t waiting
    uint32_t users
    uint8_t serving
    size_t turn  # of each, in the round that was paid for
    size_t paid  # bytes
    int64_t due  # when what was paid for may go

cdef struct draw:
    uint8_t count  # of gates; 0: not shaped
    uint8_t slot  # of the gate where it waits
    gate* waits  # NULL: nowhere
    draw* next
    draw* previous
    size_t want
    gate* gates[DRAWS]
    uint32_t granted[DRAWS]  # bytes that its turn at a gate has left
    void (*resume)(draw* d) noexcept nogil
    void* subject  # the owner's

# -1: no memory, and nothing is attached. The core is entered.
cdef int draw_attach(draw* d, core* c, bucket** buckets, int count) noexcept nogil
cdef void draw_detach(draw* d) noexcept nogil
# To the gates of another engine; both mutexes are held. -1: no memory, and nothing is attached. It waits
# nowhere then: its owner goes on by itself.
cdef int draw_move(draw* d, core* to) noexcept nogil
# Of the next n bytes, so many may go; `backlog` is all that is there, n or more.
cdef size_t draw_allow(draw* d, size_t n, size_t backlog) noexcept nogil
cdef void draw_spend(draw* d, size_t n) noexcept nogil


cdef class Bucket:
    cdef bucket* b
    cdef object __weakref__
