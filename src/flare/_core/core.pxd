# What every struct of the data plane shares: one engine's lock, events for Python, timers, and the order in
# which things die.
#
# Rules that keep it safe
# - Everything but `node.owner` is touched between enter() and leave() only, which hold the engine's mutex.
#   The nogil pass holds it too, so threads drive engines.
# - `node.owner` is the Python wrapper, borrowed. It is read and written with the GIL held only.
# - A wrapper that dies does not touch the state: the garbage collector runs anywhere, also inside enter(). It
#   pushes its node on a lock-free stack (disown) and the next enter() or pass acts on it.
# - Nothing is freed where it dies: bury() it, and the end of the pass or of the entry frees it. So a pointer
#   to a node holds while the mutex does, or while its wrapper lives; the poller knows links by slot.
# - Who holds a mutex does not wait for the GIL, except for a cipher of `cryptography`: so enter() may wait
#   for the mutex with the GIL held, where the ciphers are native.
# - Between two links a pass lets everybody in who waits (give_way).
# - A link changes its engine with the GIL and both mutexes held, taken in the order of addresses. So the core
#   of a link holds while its mutex or the GIL is held: enter_at() looks again once it is in.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attr)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_trylock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    ctypedef struct pthread_cond_t:
        pass
    int pthread_cond_init(pthread_cond_t* cond, const void* attr)
    int pthread_cond_destroy(pthread_cond_t* cond)
    int pthread_cond_wait(pthread_cond_t* cond, pthread_mutex_t* mutex)
    int pthread_cond_signal(pthread_cond_t* cond)

cdef enum:
    SPARES = 16  # output buffers kept for the next link that sends
    SPARE_SIZE = 320 * 1024
    NO_LINK = 0xFFFFFFF0  # slots from here on are the poller's own

cdef struct node_ops:
    void (*flush)(node* n) noexcept nogil  # it was dirty: write what it has to write
    void (*orphan)(node* n) noexcept nogil  # its wrapper is gone
    void (*free)(node* n) noexcept nogil
    core* (*home)(node* n) noexcept nogil

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

# Where the poller finds a link: a number and a generation, since what it reports may be gone meanwhile.
cdef struct slot:
    node* link  # NULL: free
    uint32_t generation
    uint32_t next_free

cdef struct core:
    pthread_mutex_t mutex
    pthread_cond_t turn  # nobody waits for the mutex any more
    uint32_t waiters  # in Python, for the mutex; atomic
    bint yielded  # a pass waits for `turn`
    bint gil_free  # whoever holds the mutex gets on without the GIL
    bint threaded  # a thread makes the passes
    uint32_t stop  # atomic: that thread is to end
    core* beside  # a ring of cores whose links may be joined; changed and read with the GIL
    uint32_t refs  # wrappers and the Engine; atomic
    node* orphans  # atomic
    node* events_head
    node* events_tail
    node* dirty_head
    node* dirty_tail
    uint32_t dirty_count
    uint32_t lazy  # of them: those that can wait for a millisecond (threaded)
    node* graves
    node* links  # of link, by link.next
    uint32_t link_count
    uint32_t pairs  # splices under way
    slot* slots
    uint32_t slots_cap
    uint32_t slots_used  # those beyond were never used
    uint32_t slots_free  # 1 + the first of the free ones
    node* readable[2]  # links to be read: those with little to say, and the others; by link.ready_next
    node* readable_last[2]
    uint32_t readable_count[2]
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
    bint passing  # a pass is under way, or run_pass delivers: it flushes at its end, no need to wake it
    bint busy  # the last pass left something to do,
    bint nap  # ... or something that can wait for a millisecond
    bint running  # its thread
    core* driven  # the next of all cores that have one
    bint told  # Python is due to look for events (threaded)
    int told_fd
    bint closed
    void* engine  # PyObject*, borrowed: the Engine
    void* on_wake  # PyObject*, borrowed from the Engine, under the GIL
    int poll_fd
    int timer_fd
    # the poller's (poller.pxi): 0, or an errno
    int (*watch)(core* c, int fd, uint64_t place, int was, int what) noexcept nogil
    core_counters counters

cdef extern from *:
    """
    #define flare_load32(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define flare_store32(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define flare_add(p, v) __atomic_add_fetch((p), (v), __ATOMIC_ACQ_REL)
    #define FLARE_NO_PLACE ((uint64_t)-1)
    """
    uint32_t flare_load32(uint32_t* p) noexcept nogil
    void flare_store32(uint32_t* p, uint32_t v) noexcept nogil
    uint32_t flare_add(uint32_t* p, int v) noexcept nogil
    const uint64_t NO_PLACE "FLARE_NO_PLACE"

cdef core* core_new() except NULL
cdef void core_ref(core* c) noexcept nogil
cdef void core_unref(core* c) noexcept nogil
cdef int64_t monotonic() noexcept nogil

# Entering from Python, with the GIL. No Python code may run between the two, nor anything that may block.
cdef void enter(core* c) noexcept
cdef core* enter_at(core** place) noexcept  # the core that stands in `place`, which a move may change
cdef void enter_two(core* a, core* b) noexcept
cdef void leave(core* c) noexcept
# The same without the GIL: a pass; or a call of Python's that takes long, which then owes wake() if leaving
# says so.
cdef void enter_nogil(core* c) noexcept nogil
cdef core* enter_at_nogil(core** place) noexcept nogil
cdef bint leave_nogil(core* c) noexcept nogil
cdef void leave_pass(core* c, bint busy) noexcept nogil  # busy: the next one follows at once
cdef void wake(core* c) noexcept
cdef void unlock(core* c) noexcept nogil
cdef void give_way(core* c) noexcept nogil
cdef void wake_poller(core* c) noexcept nogil
cdef void tell(core* c) noexcept nogil

cdef uint64_t slot_take(core* c, node* link) noexcept nogil  # what the poller is given; NO_PLACE: no memory
cdef void slot_give(core* c, uint64_t place) noexcept nogil
cdef node* slot_get(core* c, uint64_t place) noexcept nogil  # NULL: gone
cdef int core_reserve(core* c, uint32_t links, uint32_t timers) noexcept nogil  # -1: no memory

cdef void set_dirty(core* c, node* n) noexcept nogil
cdef void flush_dirty(core* c) noexcept nogil  # one round: what gets dirty by it waits for the next
cdef void notify(core* c, node* n, uint32_t events) noexcept nogil
cdef node* next_event(core* c, uint32_t* events) noexcept nogil
# After nodes went from one core to another: what of theirs waits here waits there. Both mutexes are held.
cdef void move_lists(core* c, core* to) noexcept nogil
# What a callback raised goes to sys.unraisablehook.
cdef void report(object callback, object error) noexcept
cdef void bury(core* c, node* n) noexcept nogil
# From __dealloc__, with the GIL and nothing else: gives up the wrapper's hold on `n` and on the core.
cdef void disown(core* c, node* n) noexcept

cdef int timer_set(core* c, timer* t, int64_t deadline) noexcept nogil  # -1: no memory
cdef void timer_clear(core* c, timer* t) noexcept nogil
cdef int64_t next_deadline(core* c) noexcept nogil  # 0: none
cdef void fire_timers(core* c) noexcept nogil
