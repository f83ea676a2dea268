# What every struct of the data plane shares: one engine's lock, events for Python, timers, and the order in
# which things die.
#
# Rules that keep it safe
# - Everything but `node.owner` is touched between enter() and leave() only, which hold the engine's mutex.
#   The nogil pass holds it too, so threads may drive engines.
# - `node.owner` is the Python wrapper, borrowed. It is read and written with the GIL held only.
# - A wrapper that dies does not touch the state: the garbage collector runs anywhere, also inside enter(). It
#   pushes its node on a lock-free stack (disown) and the next enter() or pass acts on it.
# - Nothing is freed where it dies: bury() it, and the end of the pass or of the entry frees it, when no C
#   frame can hold it.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attr)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_trylock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)

cdef enum:
    SPARES = 16  # output buffers kept for the next link that sends
    SPARE_SIZE = 320 * 1024

cdef struct node_ops:
    void (*flush)(node* n) noexcept nogil  # it was dirty: write what it has to write
    void (*orphan)(node* n) noexcept nogil  # its wrapper is gone
    void (*free)(node* n) noexcept nogil

cdef struct node:
    const node_ops* ops
    void* owner  # PyObject*, borrowed, under the GIL
    node* event_next
    node* dirty_next
    node* orphan_next
    node* grave_next
    uint32_t events  # not yet delivered; their meaning is the owner's
    uint8_t has_event  # is in core.events
    uint8_t dirty  # is in core.dirty
    uint8_t buried  # is in core.graves
    uint8_t held  # a wrapper lives, or died and its orphan() has not run

cdef struct timer:
    int64_t deadline
    uint32_t slot  # 1 + index in the heap; 0: not set
    node* subject
    void (*fire)(node* subject) noexcept nogil

cdef struct core_counters:
    uint64_t passes
    uint64_t receives
    uint64_t sends
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t events

cdef struct core:
    pthread_mutex_t mutex
    uint32_t refs  # wrappers and the Engine; atomic
    node* orphans  # atomic
    node* events_head
    node* events_tail
    node* dirty_head
    node* dirty_tail
    node* graves
    node* links  # of link, by link.next
    timer** heap
    uint32_t timers
    uint32_t timers_cap
    int64_t now  # monotonic ns, of this pass or entry
    int64_t armed  # what the poller's timer is set to
    uint8_t* scratch  # what one recv reads into
    uint8_t* spares[SPARES]
    int spare_count
    int wake_fd
    bint woken  # a pass is on its way
    bint passing  # run_pass delivers, and flushes at its end: no need to wake it
    bint keeping  # run_pass holds bare pointers: nothing is freed
    bint closed
    void* on_wake  # PyObject*, borrowed from the Engine, under the GIL
    int poll_fd
    int timer_fd
    # the poller's (poller.pxi): 0, or an errno
    int (*watch)(core* c, int fd, void* data, int was, int what) noexcept nogil
    core_counters counters

cdef core* core_new() except NULL
cdef void core_ref(core* c) noexcept nogil
cdef void core_unref(core* c) noexcept nogil
cdef int64_t monotonic() noexcept nogil

# Entering from Python, with the GIL. No Python code may run between the two, nor anything that may block.
cdef void enter(core* c) noexcept
cdef void leave(core* c) noexcept
# The same from a pass, without the GIL.
cdef void enter_nogil(core* c) noexcept nogil
cdef void leave_nogil(core* c) noexcept nogil

cdef void set_dirty(core* c, node* n) noexcept nogil
cdef void flush_dirty(core* c) noexcept nogil  # one round: what gets dirty by it waits for the next
cdef void notify(core* c, node* n, uint32_t events) noexcept nogil
cdef node* next_event(core* c, uint32_t* events) noexcept nogil
# What a callback raised goes to sys.unraisablehook.
cdef void report(object callback, object error) noexcept
cdef void bury(core* c, node* n) noexcept nogil
# From __dealloc__, with the GIL and nothing else: gives up the wrapper's hold on `n` and on the core.
cdef void disown(core* c, node* n) noexcept

cdef int timer_set(core* c, timer* t, int64_t deadline) noexcept nogil  # -1: no memory
cdef void timer_clear(core* c, timer* t) noexcept nogil
cdef int64_t next_deadline(core* c) noexcept nogil  # 0: none
cdef void fire_timers(core* c) noexcept nogil
