"""Token buckets for relayed bytes, and the gates where splices wait for them. See shaper.pxd."""

from libc.stdlib cimport calloc, free

from flare._core.core cimport (
    bury,
    monotonic,
    node_ops,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    timer_clear,
    timer_set,
)

from flare.errors import UsageError

cdef extern from *:
    """
    #define shaper_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define shaper_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define shaper_add(p, v) __atomic_add_fetch((p), (v), __ATOMIC_ACQ_REL)
    #define shaper_cas(p, old, v) \\
        __atomic_compare_exchange_n((p), (old), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
    """
    uint64_t load_u "shaper_load"(uint64_t* p) noexcept nogil
    int64_t load_i "shaper_load"(int64_t* p) noexcept nogil
    uint32_t load_n "shaper_load"(uint32_t* p) noexcept nogil
    void store_u "shaper_store"(uint64_t* p, uint64_t v) noexcept nogil
    void store_i "shaper_store"(int64_t* p, int64_t v) noexcept nogil
    int64_t add_i "shaper_add"(int64_t* p, int64_t v) noexcept nogil
    uint32_t add_n "shaper_add"(uint32_t* p, int v) noexcept nogil
    bint cas_i "shaper_cas"(int64_t* p, int64_t* old, int64_t v) noexcept nogil

cdef enum:
    SECOND = 1000000000
    ROUNDS_A_SECOND = 50  # at one gate: how long a turn may be, together with
    TURN_MIN = 2048
    TURN_MAX = 64 * 1024
    GRANT_MAX = 1 << 30
    BURST_SHARE = 4  # of a second: the default burst, and at least
    BURST_MIN = 64 * 1024
    POLL = SECOND  # ns after which a gate looks again: the rate may have been raised
    SERVES = 16  # rounds in one go

cdef int64_t AGES = <int64_t>1 << 61  # ns, and no sum of two overflows

MAX_RATE = 1 << 40
MAX_BURST = 1 << 40


# A bucket

cdef inline int64_t ns_of(uint64_t n, uint64_t rate) noexcept nogil:
    """What n bytes take, rounded up."""
    cdef double exact = <double>n * SECOND / <double>rate
    cdef int64_t ns = <int64_t>min(exact, <double>AGES)
    return ns + 1 if <double>ns < exact else ns


cdef int64_t bucket_spend(bucket* b, uint64_t n, int64_t now) noexcept nogil:
    """Take n bytes, whether they are there or not; returns when they are."""
    cdef uint64_t rate = load_u(&b.rate)
    cdef int64_t spent = load_i(&b.spent)
    cdef int64_t base
    cdef int64_t cost
    if rate == 0:
        return now
    cost = ns_of(n, rate)
    while True:
        base = min(max(spent, now - load_i(&b.depth)), <int64_t>AGES)
        if cas_i(&b.spent, &spent, base + cost):
            return base + cost


cdef void bucket_refund(bucket* b, uint64_t n) noexcept nogil:
    cdef uint64_t rate = load_u(&b.rate)
    if rate and n:
        add_i(&b.spent, -<int64_t>(<double>n * SECOND / <double>rate))


cdef uint64_t bucket_tokens(bucket* b, int64_t now) noexcept nogil:
    cdef uint64_t rate = load_u(&b.rate)
    cdef int64_t ns = min(now - load_i(&b.spent), load_i(&b.depth))
    if ns <= 0:
        return 0
    return min(<uint64_t>(<double>ns * <double>rate / SECOND), load_u(&b.burst))


cdef size_t bucket_turn(bucket* b) noexcept nogil:
    """What one of those that wait may send in a round."""
    cdef uint64_t rate = load_u(&b.rate)
    cdef uint64_t share = rate // (ROUNDS_A_SECOND * max(load_n(&b.waiting), <uint32_t>1))
    if rate == 0 or share > TURN_MAX:
        return TURN_MAX
    return max(share, <uint64_t>TURN_MIN)


cdef void bucket_unref(bucket* b) noexcept nogil:
    if add_n(&b.refs, -1) == 0:
        pthread_mutex_destroy(&b.mutex)
        free(b)


# A gate: those of one engine that wait for one bucket

cdef void gate_no_flush(node* n) noexcept nogil:
    pass


cdef void gate_free(node* n) noexcept nogil:
    bucket_unref((<gate*>n).bucket)
    free(n)


cdef core* gate_home(node* n) noexcept nogil:
    return (<gate*>n).core


cdef node_ops gate_ops
gate_ops.home = gate_home
gate_ops.flush = gate_no_flush
gate_ops.orphan = gate_no_flush
gate_ops.free = gate_free


cdef gate* gate_at(bucket* b, core* c) noexcept nogil:
    cdef gate* g
    pthread_mutex_lock(&b.mutex)
    g = b.gates
    while g != NULL and g.core != c:
        g = g.next
    if g == NULL:
        g = <gate*>calloc(1, sizeof(gate))
        if g != NULL:
            g.node.ops = &gate_ops
            g.core = c
            g.bucket = b
            g.timer.subject = &g.node
            g.timer.fire = gate_due
            g.next = b.gates
            b.gates = g
            add_n(&b.refs, 1)
    pthread_mutex_unlock(&b.mutex)
    if g != NULL:
        g.users += 1
    return g


cdef void gate_leave(gate* g) noexcept nogil:
    cdef gate** place
    g.users -= 1
    if g.users:
        return
    pthread_mutex_lock(&g.bucket.mutex)
    place = &g.bucket.gates
    while place[0] != g:
        place = &place[0].next
    place[0] = g.next
    pthread_mutex_unlock(&g.bucket.mutex)
    timer_clear(g.core, &g.timer)
    bury(g.core, &g.node)


cdef void gate_pay(gate* g) noexcept nogil:
    """Pay for one round."""
    cdef draw* d = g.head
    g.turn = bucket_turn(g.bucket)
    g.paid = 0
    while d != NULL:
        g.paid += min(d.want, g.turn)
        d = d.next
    g.due = bucket_spend(g.bucket, g.paid, g.core.now)


cdef bint gate_is_due(gate* g) noexcept nogil:
    # what others gave back, or a higher rate, brings everybody's time forward
    g.due = min(g.due, load_i(&g.bucket.spent))
    return g.due <= g.core.now or load_u(&g.bucket.rate) == 0


cdef void gate_open(gate* g) noexcept nogil:
    """One round: each that waits now has its turn."""
    cdef size_t paid = g.paid
    cdef uint32_t left = g.waiting
    cdef draw* d
    cdef uint32_t part
    g.paid = 0
    g.serving = 1
    while left and g.head != NULL and paid:
        left -= 1
        d = g.head
        gate_remove(d)
        part = <uint32_t>min(min(d.want, g.turn), paid)
        d.granted[d.slot] = part
        paid -= part
        d.resume(d)
        if d.waits == NULL:
            settle(d)
    g.serving = 0
    bucket_refund(g.bucket, paid)


cdef void gate_due(node* n) noexcept nogil:
    gate_serve(<gate*>n)


cdef void gate_serve(gate* g) noexcept nogil:
    cdef int _i
    for _i in range(SERVES):
        if g.head == NULL:
            return
        if g.paid == 0:
            gate_pay(g)
        if not gate_is_due(g):
            break
        gate_open(g)
    while g.head != NULL:
        if g.paid == 0:
            gate_pay(g)
        if timer_set(g.core, &g.timer, min(g.due, g.core.now + POLL)) == 0:
            return
        gate_open(g)  # no memory for a timer: late would be never


cdef void gate_push(gate* g, draw* d, int slot, size_t want) noexcept nogil:
    d.waits = g
    d.slot = <uint8_t>slot
    d.want = min(want, <size_t>GRANT_MAX)
    d.next = NULL
    d.previous = g.tail
    if g.tail == NULL:
        g.head = d
    else:
        g.tail.next = d
    g.tail = d
    g.waiting += 1
    add_n(&g.bucket.waiting, 1)


cdef void gate_remove(draw* d) noexcept nogil:
    cdef gate* g = d.waits
    d.waits = NULL
    if d.previous == NULL:
        g.head = d.next
    else:
        d.previous.next = d.next
    if d.next == NULL:
        g.tail = d.previous
    else:
        d.next.previous = d.previous
    d.next = d.previous = NULL
    g.waiting -= 1
    add_n(&g.bucket.waiting, -1)
    if g.head == NULL and g.paid:
        bucket_refund(g.bucket, g.paid)
        g.paid = 0
        timer_clear(g.core, &g.timer)


# A draw: one way of a splice

cdef int draw_attach(draw* d, core* c, bucket** buckets, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        d.gates[i] = gate_at(buckets[i], c)
        if d.gates[i] == NULL:
            draw_detach(d)
            return -1
        d.count += 1
    return 0


cdef int draw_move(draw* d, core* to) noexcept nogil:
    cdef bucket* buckets[DRAWS]
    cdef int i
    cdef int count = d.count
    for i in range(count):
        buckets[i] = d.gates[i].bucket
    draw_detach(d)  # what its gates hold is freed when the core is left
    return draw_attach(d, to, buckets, count)


cdef void draw_detach(draw* d) noexcept nogil:
    cdef int i
    cdef int count = d.count
    if d.waits != NULL:
        gate_remove(d)
    settle(d)
    d.count = 0
    for i in range(count):
        gate_leave(d.gates[i])


cdef void settle(draw* d) noexcept nogil:
    """Give back what the turn left over."""
    cdef int i
    for i in range(d.count):
        if d.granted[i]:
            bucket_refund(d.gates[i].bucket, d.granted[i])
            d.granted[i] = 0


cdef size_t draw_allow(draw* d, size_t n, size_t backlog) noexcept nogil:
    cdef gate* g
    cdef uint64_t tokens
    cdef size_t turn
    cdef size_t allowed = n
    cdef int i
    if d.waits != NULL or n == 0:
        return 0
    for i in range(d.count):
        g = d.gates[i]
        if d.granted[i]:
            allowed = min(allowed, <size_t>d.granted[i])
            continue
        if load_u(&g.bucket.rate) == 0:
            continue
        turn = bucket_turn(g.bucket)
        if g.head == NULL:
            tokens = bucket_tokens(g.bucket, g.core.now)
            if tokens >= min(n, turn):
                allowed = min(allowed, <size_t>tokens)
                continue
        gate_push(g, d, i, max(n, backlog))
        if not g.serving and not g.timer.slot:
            gate_serve_later(g)
        return 0
    return allowed


cdef void gate_serve_later(gate* g) noexcept nogil:
    gate_pay(g)
    # with no memory for a timer, the next that comes here tries again
    timer_set(g.core, &g.timer, min(g.due, g.core.now + POLL))


cdef void draw_spend(draw* d, size_t n) noexcept nogil:
    cdef int i
    cdef size_t part
    for i in range(d.count):
        part = min(n, <size_t>d.granted[i])
        d.granted[i] -= <uint32_t>part
        if n > part:
            bucket_spend(d.gates[i].bucket, n - part, d.gates[i].core.now)


cdef class Bucket:
    """Tokens for bytes: `rate` a second (0: no limit), of which `burst` may be saved up."""

    def __cinit__(self, rate, burst=0):
        self.b = <bucket*>calloc(1, sizeof(bucket))
        if self.b == NULL:
            raise MemoryError
        self.b.refs = 1
        pthread_mutex_init(&self.b.mutex, NULL)
        self.change(rate, burst)
        self.b.spent = monotonic() - self.b.depth

    def __dealloc__(self):
        if self.b != NULL:
            bucket_unref(self.b)

    def change(self, rate, burst=0):
        cdef uint64_t fresh
        cdef uint64_t old = load_u(&self.b.rate)
        cdef int64_t now = monotonic()
        cdef int64_t spent = load_i(&self.b.spent)
        cdef int64_t debt
        if not (0 <= rate <= MAX_RATE and 0 <= burst <= MAX_BURST):
            raise UsageError(f"a rate is 0 to {MAX_RATE} bytes a second and a burst 0 to {MAX_BURST} bytes")
        fresh = rate
        if not burst:
            burst = max(rate // BURST_SHARE, BURST_MIN)
        store_u(&self.b.burst, burst)
        store_i(&self.b.depth, ns_of(burst, fresh) if fresh else 0)
        store_u(&self.b.rate, fresh)
        while old and spent > now:
            # what is owed in bytes stays, what it takes to pay does not
            debt = <int64_t>(<double>(spent - now) * <double>old / <double>fresh) if fresh else 0
            if cas_i(&self.b.spent, &spent, now + debt):
                break

    @property
    def rate(self):
        return load_u(&self.b.rate)

    @property
    def burst(self):
        return load_u(&self.b.burst)

    @property
    def available(self):
        return bucket_tokens(self.b, monotonic())

    @property
    def full(self):
        cdef int64_t now = monotonic()
        return load_i(&self.b.spent) <= now - load_i(&self.b.depth)

    @property
    def waiting(self):
        return load_n(&self.b.waiting)

    @property
    def turn(self):
        return bucket_turn(self.b)

    @property
    def owed_ns(self):
        return max(load_i(&self.b.spent) - monotonic(), 0) if load_u(&self.b.rate) else 0

    def spend(self, uint64_t n):
        cdef int64_t now = monotonic()
        return max(bucket_spend(self.b, n, now) - now, 0)
