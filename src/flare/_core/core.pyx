"""The ground under links, streams and splices: locking, events, timers, deferred death. Rules: core.pxd."""

from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable
from libc.stdlib cimport calloc, free, realloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport write

cdef extern from *:
    """
    #define flare_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define flare_swap(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
    #define flare_cas(p, old, v) \\
        __atomic_compare_exchange_n((p), (old), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
    """
    node* flare_load(node** p) noexcept nogil
    node* flare_swap(node** p, node* v) noexcept nogil
    bint flare_cas(node** p, node** old, node* v) noexcept nogil


cdef int64_t monotonic() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef core* core_new() except NULL:
    cdef core* c = <core*>calloc(1, sizeof(core))
    if c == NULL:
        raise MemoryError
    pthread_mutex_init(&c.mutex, NULL)
    pthread_cond_init(&c.turn, NULL)
    c.refs = 1
    c.beside = c
    c.wake_fd = c.poll_fd = c.timer_fd = c.told_fd = -1
    c.now = monotonic()
    return c


cdef void core_ref(core* c) noexcept nogil:
    flare_add(&c.refs, 1)


cdef void core_unref(core* c) noexcept nogil:
    cdef int i
    if flare_add(&c.refs, -1) != 0:
        return
    # the Engine closed every link before it let go, so only orphans and graves are left
    run_orphans(c)
    while next_event(c, NULL) != NULL:
        pass
    while next_dirty(c) != NULL:
        pass
    reap(c)
    for i in range(c.spare_count):
        free(c.spares[i])
    free(c.heap)
    free(c.slots)
    free(c.scratch)
    pthread_cond_destroy(&c.turn)
    pthread_mutex_destroy(&c.mutex)
    free(c)


# Entering

cdef void enter(core* c) noexcept:
    if pthread_mutex_trylock(&c.mutex) != 0:
        flare_add(&c.waiters, 1)
        if c.gil_free:
            # no longer than one link's turn; letting go of the GIL could cost 5 ms, with the mutex held
            pthread_mutex_lock(&c.mutex)
        else:
            with nogil:
                pthread_mutex_lock(&c.mutex)
        flare_add(&c.waiters, -1)
    begin(c)


cdef inline void begin(core* c) noexcept nogil:
    c.now = monotonic()
    if flare_load(&c.orphans) != NULL:
        run_orphans(c)


cdef core* enter_at(core** place) noexcept:
    cdef core* c
    while True:
        c = place[0]
        enter(c)
        if c == place[0]:
            return c
        unlock(c)


cdef void enter_two(core* a, core* b) noexcept:
    enter(a if a < b else b)
    enter(b if a < b else a)


cdef void leave(core* c) noexcept:
    if leave_nogil(c):
        wake(c)


cdef void enter_nogil(core* c) noexcept nogil:
    pthread_mutex_lock(&c.mutex)
    begin(c)


cdef core* enter_at_nogil(core** place) noexcept nogil:
    cdef core* c
    while True:
        c = place[0]
        flare_add(&c.waiters, 1)
        pthread_mutex_lock(&c.mutex)
        flare_add(&c.waiters, -1)
        if c == place[0]:
            begin(c)
            return c
        unlock(c)


cdef bint leave_nogil(core* c) noexcept nogil:
    """True: wake() is to be called, with the GIL."""
    cdef bint work = False
    cdef bint news = False
    cdef int64_t deadline
    if c.graves != NULL:
        reap(c)
    if c.closed:
        unlock(c)
        return False
    if c.threaded:
        news = c.events_head != NULL and not c.told
        c.told |= news
    if not c.woken and not c.passing:
        deadline = next_deadline(c)
        work = c.dirty_head != NULL or (not c.threaded and c.events_head != NULL) or (
            deadline != 0 and (c.armed == 0 or deadline < c.armed)
        )
        c.woken = work
    unlock(c)
    if news:
        tell(c)
    if work and c.threaded:
        wake_poller(c)
        return False
    return work


cdef void leave_pass(core* c, bint busy) noexcept nogil:
    cdef bint news = False
    if c.graves != NULL:
        reap(c)
    c.busy = busy
    c.nap = c.lazy != 0
    if c.threaded:
        c.passing = False
        c.woken = busy
        news = c.events_head != NULL and not c.told
        c.told |= news
    unlock(c)
    if news:
        tell(c)


cdef void unlock(core* c) noexcept nogil:
    if c.yielded and flare_load32(&c.waiters) == 0:
        c.yielded = False
        pthread_cond_signal(&c.turn)
    pthread_mutex_unlock(&c.mutex)


cdef void give_way(core* c) noexcept nogil:
    """In a pass, where it holds nothing but the mutex: whoever waits in Python goes first."""
    if flare_load32(&c.waiters) == 0:
        return
    while flare_load32(&c.waiters) != 0:
        c.yielded = True
        pthread_cond_wait(&c.turn, &c.mutex)
    c.now = monotonic()


cdef void wake(core* c) noexcept:
    if c.on_wake == NULL:
        wake_poller(c)
        return
    callback = <object>c.on_wake
    try:
        callback()
    except BaseException as error:
        report(callback, error)


cdef void report(object callback, object error) noexcept:
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(callback)


cdef void wake_poller(core* c) noexcept nogil:
    cdef uint64_t one = 1
    if c.wake_fd >= 0:
        write(c.wake_fd, &one, 8)


cdef void tell(core* c) noexcept nogil:
    """Make the descriptor readable that Python's loop watches for a threaded engine."""
    cdef uint64_t one = 1
    if c.told_fd >= 0:
        write(c.told_fd, &one, 8)


# Slots

cdef int slots_grow(core* c) noexcept nogil:
    cdef uint32_t cap = c.slots_cap * 2 if c.slots_cap else 64
    cdef slot* grown = <slot*>realloc(c.slots, cap * sizeof(slot))
    if grown == NULL:
        return -1
    c.slots = grown
    c.slots_cap = cap
    return 0


cdef uint64_t slot_take(core* c, node* link) noexcept nogil:
    cdef uint32_t i
    if c.slots_free:
        i = c.slots_free - 1
        c.slots_free = c.slots[i].next_free
    else:
        if c.slots_used == c.slots_cap and slots_grow(c) < 0:
            return NO_PLACE
        i = c.slots_used
        c.slots[i].generation = 0
        c.slots_used += 1
    c.slots[i].link = link
    return <uint64_t>c.slots[i].generation << 32 | i


cdef void slot_give(core* c, uint64_t place) noexcept nogil:
    cdef uint32_t i = <uint32_t>place
    c.slots[i].link = NULL
    c.slots[i].generation += 1
    c.slots[i].next_free = c.slots_free
    c.slots_free = i + 1


cdef node* slot_get(core* c, uint64_t place) noexcept nogil:
    cdef uint32_t i = <uint32_t>place
    if i >= c.slots_used or c.slots[i].generation != <uint32_t>(place >> 32):
        return NULL
    return c.slots[i].link


cdef int core_reserve(core* c, uint32_t links, uint32_t timers) noexcept nogil:
    """Make sure that so many more fit without an allocation."""
    while c.slots_cap < c.slots_used + links:
        if slots_grow(c) < 0:
            return -1
    while c.timers_cap < c.timers + timers:
        if heap_grow(c) < 0:
            return -1
    return 0


# Dirty nodes: they have something to write

cdef void set_dirty(core* c, node* n) noexcept nogil:
    if n.dirty:
        return
    n.dirty = 1
    n.dirty_next = NULL
    if c.dirty_tail == NULL:
        c.dirty_head = n
    else:
        c.dirty_tail.dirty_next = n
    c.dirty_tail = n
    c.dirty_count += 1


cdef inline node* next_dirty(core* c) noexcept nogil:
    cdef node* n = c.dirty_head
    if n != NULL:
        c.dirty_head = n.dirty_next
        if c.dirty_head == NULL:
            c.dirty_tail = NULL
        n.dirty = 0
        c.dirty_count -= 1
    return n


cdef void flush_dirty(core* c) noexcept nogil:
    cdef node* n
    cdef uint32_t left = c.dirty_count
    c.lazy = 0
    while left:
        n = next_dirty(c)
        if n == NULL:
            break
        n.ops.flush(n)
        left -= 1
        give_way(c)


# Events for Python

cdef void notify(core* c, node* n, uint32_t events) noexcept nogil:
    n.events |= events
    if not n.has_event:
        push_event(c, n)


cdef inline void push_event(core* c, node* n) noexcept nogil:
    n.has_event = 1
    n.event_next = NULL
    if c.events_tail == NULL:
        c.events_head = n
    else:
        c.events_tail.event_next = n
    c.events_tail = n


cdef node* next_event(core* c, uint32_t* events) noexcept nogil:
    cdef node* n = c.events_head
    if n == NULL:
        return NULL
    c.events_head = n.event_next
    if c.events_head == NULL:
        c.events_tail = NULL
    n.has_event = 0
    if events != NULL:
        events[0] = n.events
    n.events = 0
    c.counters.events += 1
    return n


cdef void move_lists(core* c, core* to) noexcept nogil:
    cdef node* n = c.events_head
    cdef node* following
    cdef uint32_t _left
    c.events_head = c.events_tail = NULL
    while n != NULL:
        following = n.event_next
        push_event(n.ops.home(n), n)
        n = following
    for _left in range(c.dirty_count, 0, -1):
        n = next_dirty(c)
        set_dirty(n.ops.home(n), n)
    n = c.graves
    c.graves = NULL
    while n != NULL:
        following = n.grave_next
        n.buried = 0
        bury(n.ops.home(n), n)
        n = following


# Death

cdef void bury(core* c, node* n) noexcept nogil:
    if n.buried:
        return
    n.buried = 1
    n.grave_next = c.graves
    c.graves = n


cdef void reap(core* c) noexcept nogil:
    cdef node* n
    cdef node* waiting = NULL
    while c.graves != NULL:
        n = c.graves
        c.graves = n.grave_next
        if n.has_event or n.dirty:
            n.grave_next = waiting
            waiting = n
        else:
            n.ops.free(n)
    c.graves = waiting


cdef void disown(core* c, node* n) noexcept:
    cdef node* top = flare_load(&c.orphans)
    n.owner = NULL
    n.orphan_next = top
    while not flare_cas(&c.orphans, &top, n):
        n.orphan_next = top
    if top == NULL and not c.closed:
        wake_poller(c)
    core_unref(c)


cdef void run_orphans(core* c) noexcept nogil:
    cdef node* n = flare_swap(&c.orphans, NULL)
    cdef node* following
    while n != NULL:
        following = n.orphan_next
        n.held = 0
        n.ops.orphan(n)
        n = following


# Timers: a binary heap whose entries know their place

cdef inline void heap_put(core* c, uint32_t i, timer* t) noexcept nogil:
    c.heap[i] = t
    t.slot = i + 1


cdef void heap_up(core* c, uint32_t i) noexcept nogil:
    cdef timer* t = c.heap[i]
    cdef uint32_t parent
    while i > 0:
        parent = (i - 1) >> 1
        if c.heap[parent].deadline <= t.deadline:
            break
        heap_put(c, i, c.heap[parent])
        i = parent
    heap_put(c, i, t)


cdef void heap_down(core* c, uint32_t i) noexcept nogil:
    cdef timer* t = c.heap[i]
    cdef uint32_t child
    while True:
        child = 2 * i + 1
        if child >= c.timers:
            break
        if child + 1 < c.timers and c.heap[child + 1].deadline < c.heap[child].deadline:
            child += 1
        if c.heap[child].deadline >= t.deadline:
            break
        heap_put(c, i, c.heap[child])
        i = child
    heap_put(c, i, t)


cdef int heap_grow(core* c) noexcept nogil:
    cdef uint32_t cap = c.timers_cap * 2 if c.timers_cap else 64
    cdef timer** grown = <timer**>realloc(c.heap, cap * sizeof(timer*))
    if grown == NULL:
        return -1
    c.heap = grown
    c.timers_cap = cap
    return 0


cdef int timer_set(core* c, timer* t, int64_t deadline) noexcept nogil:
    if t.slot == 0:
        if c.timers == c.timers_cap and heap_grow(c) < 0:
            return -1
        heap_put(c, c.timers, t)
        c.timers += 1
    t.deadline = deadline
    heap_up(c, t.slot - 1)
    heap_down(c, t.slot - 1)
    return 0


cdef void timer_clear(core* c, timer* t) noexcept nogil:
    cdef uint32_t i
    cdef timer* last
    if t.slot == 0:
        return
    i = t.slot - 1
    t.slot = 0
    c.timers -= 1
    if i == c.timers:
        return
    last = c.heap[c.timers]
    heap_put(c, i, last)
    heap_up(c, i)
    heap_down(c, last.slot - 1)


cdef int64_t next_deadline(core* c) noexcept nogil:
    return c.heap[0].deadline if c.timers else 0


cdef void fire_timers(core* c) noexcept nogil:
    cdef timer* t
    while c.timers and c.heap[0].deadline <= c.now:
        t = c.heap[0]
        timer_clear(c, t)
        t.fire(t.subject)
