"""The simultaneous open of TCP as a state machine per target (DCUtR.md, "the protocol", steps 5 and 6).

    READY      bound, waits for the deadline
    SENT       a SYN is out; the kernel repeats it after 1 s, so no second connect is made meanwhile
    RESTING    refused, or failed: the next connect comes at `retry_at`
    DEAD       no connect can come of it, such as without a route
    CONNECTED  its socket is a candidate

    READY -> SENT         at the deadline
    SENT -> CONNECTED
    SENT -> RESTING       RST: for a random 10 to 100 ms, since equal intervals on both sides can lock in
                          phase; any other failure: till two round trips after the SYN, since a SYN of another
                          socket before that meets the remains of the first and kills both
    RESTING -> SENT       at `retry_at`
    CONNECTED -> RESTING  the peer dropped it
    any -> DEAD           an error that another connect would meet again

A connected socket is a candidate wherever it came from: a connect that met a listener, one that met the
peer's own connect, or an accept on the same port. The side that speaks first keeps the first candidate (of
several found at one look: connects before accepts, and connects in the order of targets) and resets every
other. The side that listens first keeps the candidate that is spoken on. So both keep the same one.
"""

from libc cimport errno
from libc.stdint cimport int64_t, uint64_t

from flare._core.sockets cimport (
    POLLIN,
    POLLOUT,
    close,
    flare_abort,
    flare_accept,
    flare_address,
    flare_bound_socket,
    flare_connect,
    flare_connect_result,
    flare_is_self,
    flare_nap_until,
    flare_now,
    flare_peek,
    flare_port,
    flare_relax,
    flare_same_ip,
    flare_unmap,
    poll,
    pollfd,
)

cdef enum:
    RST_REST_MIN = 10 * MS
    RST_REST_SPAN = 90 * MS
    REST_MIN = 200 * MS
    DESCRIPTORS = 4 + MAX_TARGETS + MAX_CANDIDATES  # 4: cancel, timer, two listeners


cdef uint64_t next_random(punch_t* p) noexcept nogil:  # splitmix64
    cdef uint64_t z
    p.random += <uint64_t>0x9E3779B97F4A7C15
    z = p.random
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef void drop_socket(target_t* t) noexcept nogil:
    if t.fd >= 0:
        close(t.fd)
        t.fd = -1


cdef void rest_after_rst(punch_t* p, target_t* t, int error) noexcept nogil:
    drop_socket(t)
    t.state = RESTING
    t.error = error
    t.retry_at = flare_now() + RST_REST_MIN + <int64_t>(next_random(p) % RST_REST_SPAN)


cdef void rest_two_round_trips(punch_t* p, target_t* t, int error) noexcept nogil:
    drop_socket(t)
    t.state = RESTING
    t.error = error
    t.retry_at = t.last_syn + max(2 * p.rtt, <int64_t>REST_MIN)
    t.retry_at = max(t.retry_at, flare_now() + RST_REST_MIN)


cdef void give_up_target(target_t* t, int error) noexcept nogil:
    drop_socket(t)
    t.state = DEAD
    t.error = error


cdef void failed(punch_t* p, target_t* t, int error) noexcept nogil:
    """A SYN that was sent came to nothing."""
    if error == errno.ECONNREFUSED or error == errno.ECONNRESET:
        t.refused += 1
        rest_after_rst(p, t, error)
    else:
        rest_two_round_trips(p, t, error)


cdef void add_candidate(punch_t* p, int fd, int how, int target, const flare_address* remote) noexcept nogil:
    cdef candidate_t* c
    if p.candidate_n == MAX_CANDIDATES or (p.speaks_first and p.candidate_n > 0):
        flare_abort(fd)
        return
    if p.candidate_n == 0:
        p.settle_at = flare_now() + max(3 * p.rtt, <int64_t>REST_MIN)
    c = &p.candidates[p.candidate_n]
    c.fd = fd
    c.how = how
    c.target = target
    c.remote = remote[0]
    p.candidate_n += 1


cdef void connected(punch_t* p, int i) noexcept nogil:
    cdef target_t* t = &p.targets[i]
    if flare_is_self(t.fd):
        t.is_self = True
        flare_abort(t.fd)
        t.fd = -1
        t.state = DEAD
        return
    t.state = CONNECTED
    add_candidate(p, t.fd, BY_CONNECT, i, &t.addr)
    t.fd = -1


cdef void fire(punch_t* p, int i) noexcept nogil:
    cdef target_t* t = &p.targets[i]
    cdef int error
    if t.fd < 0:
        t.fd = flare_bound_socket(&t.local)
        if t.fd < 0:
            give_up_target(t, errno.errno)
            return
    t.last_syn = flare_now()
    error = flare_connect(t.fd, &t.addr)
    if t.connects == 0:
        t.first_syn = t.last_syn
    t.connects += 1
    if error == 0:
        connected(p, i)
    elif error == errno.EINPROGRESS or error == errno.EINTR:
        t.state = SENT
    elif error == errno.ECONNREFUSED or error == errno.ECONNRESET:
        failed(p, t, error)
    elif error == errno.EADDRNOTAVAIL or error == errno.EADDRINUSE:
        # no SYN left: the peer's own came first and this pair of addresses is the listener's to accept
        rest_after_rst(p, t, error)
        accept_all(p)
    else:
        give_up_target(t, error)


cdef int owner_of(punch_t* p, const flare_address* remote) noexcept nogil:
    """The target at this very address, else one at its IP (a NAT may have changed the port), else -1."""
    cdef int i
    cdef int same_ip = -1
    for i in range(p.target_n):
        if flare_same_ip(&p.targets[i].addr, remote):
            if flare_port(&p.targets[i].addr) == flare_port(remote):
                return i
            if same_ip < 0:
                same_ip = i
    return same_ip


cdef void accept_all(punch_t* p) noexcept nogil:
    cdef int side, fd, target
    cdef flare_address remote
    for side in range(2):
        while p.listeners[side] >= 0:
            fd = flare_accept(p.listeners[side], &remote)
            if fd < 0:
                if errno.errno == errno.ECONNABORTED or errno.errno == errno.EINTR:
                    continue
                if errno.errno != errno.EAGAIN:
                    p.listener_error = errno.errno  # such as no descriptors left: stop asking
                    close_listener(p, side)
                break
            flare_unmap(&remote)
            target = owner_of(p, &remote)
            if target >= 0:
                add_candidate(p, fd, BY_ACCEPT, target, &remote)
            elif p.other_n < MAX_OTHERS:
                p.others[p.other_n].fd = fd
                p.others[p.other_n].remote = remote
                p.other_n += 1
            else:
                flare_abort(fd)


cdef void close_listener(punch_t* p, int side) noexcept nogil:
    if p.own_listeners and p.listeners[side] >= 0:
        close(p.listeners[side])
    p.listeners[side] = -1


cdef void check_connects(punch_t* p, const pollfd* polled, const int* who, int n) noexcept nogil:
    cdef int i, error
    cdef target_t* t
    for i in range(n):
        if who[i] < 0 or not polled[i].revents:
            continue
        t = &p.targets[who[i]]
        if t.fd != polled[i].fd or t.state != SENT:
            continue
        error = flare_connect_result(t.fd)
        if error == 0:
            connected(p, who[i])
        else:
            failed(p, t, error)


cdef bint choose(punch_t* p, int64_t now) noexcept nogil:
    """Whether there is a winner: the first candidate, or where the peer speaks first, the first spoken on."""
    cdef int i = 0
    cdef int state
    cdef candidate_t* c
    if p.speaks_first:
        p.winner = 0
        return p.candidate_n > 0
    while i < p.candidate_n:
        c = &p.candidates[i]
        state = flare_peek(c.fd)
        if state > 0:
            p.winner = i
            return True
        if state == 0:
            i += 1
            continue
        # the peer keeps another, or something on the way cut it
        if p.targets[c.target].state == CONNECTED:
            rest_two_round_trips(p, &p.targets[c.target], errno.ECONNRESET)
        close(c.fd)
        p.candidate_n -= 1
        for state in range(i, p.candidate_n):
            p.candidates[state] = p.candidates[state + 1]
    p.winner = 0
    return p.candidate_n > 0 and (now >= p.settle_at or now >= p.end)


cdef int64_t next_wake(const punch_t* p) noexcept nogil:
    cdef int64_t wake = p.end if p.fired else p.deadline - SPIN
    cdef int i
    if p.candidate_n:
        return min(wake, p.settle_at)
    for i in range(p.target_n):
        if p.targets[i].state == RESTING:
            wake = min(wake, p.targets[i].retry_at)
    return wake


cdef bint hopeless(const punch_t* p) noexcept nogil:
    cdef int i
    for i in range(p.target_n):
        if p.targets[i].state != DEAD:
            return False
    return p.fired and p.candidate_n == 0


cdef int simopen_run(punch_t* p) noexcept nogil:
    cdef pollfd polled[DESCRIPTORS]
    cdef int who[DESCRIPTORS]
    cdef int i, n, ms
    cdef int64_t now
    while True:
        now = flare_now()
        if not p.fired and p.deadline - now <= SPIN:
            while flare_now() < p.deadline:
                flare_relax()
            p.fired = True
            for i in range(p.target_n):
                if p.targets[i].state == READY:
                    fire(p, i)
        elif p.fired and p.candidate_n == 0 and now < p.end:
            for i in range(p.target_n):
                if p.targets[i].state == RESTING and p.targets[i].retry_at <= now:
                    fire(p, i)
        if choose(p, now):
            return WON
        if now >= p.end:
            return TIMED_OUT
        if hopeless(p):
            return HOPELESS

        n = 0
        if p.cancel_fd >= 0:
            n = watch(polled, who, n, p.cancel_fd, POLLIN, -1)
        for i in range(2):
            if p.listeners[i] >= 0:
                n = watch(polled, who, n, p.listeners[i], POLLIN, -1)
        for i in range(p.target_n):
            if p.targets[i].state == SENT:
                n = watch(polled, who, n, p.targets[i].fd, POLLOUT, i)
        for i in range(p.candidate_n):
            n = watch(polled, who, n, p.candidates[i].fd, POLLIN, -1)
        now = flare_now()
        ms = <int>max((next_wake(p) - now + MS - 1) // MS, 0)
        if not p.fired:
            if p.timer_fd >= 0:
                n = watch(polled, who, n, p.timer_fd, POLLIN, -1)
            else:  # whole milliseconds by poll, what is left of one by a nap
                ms = max(ms - 1, 0)
                if ms == 0:
                    flare_nap_until(p.deadline - SPIN)
        if poll(polled, n, ms) < 0:
            p.poll_error = errno.errno
            return INTERRUPTED if errno.errno == errno.EINTR else BROKEN
        if p.cancel_fd >= 0 and polled[0].revents:
            return CANCELLED
        check_connects(p, polled, who, n)
        accept_all(p)


cdef inline int watch(pollfd* polled, int* who, int n, int fd, short events, int target) noexcept nogil:
    polled[n].fd = fd
    polled[n].events = events
    polled[n].revents = 0
    who[n] = target
    return n + 1


cdef void simopen_close(punch_t* p) noexcept nogil:
    cdef int i
    for i in range(p.target_n):
        drop_socket(&p.targets[i])
    for i in range(p.candidate_n):
        if p.candidates[i].fd >= 0:
            flare_abort(p.candidates[i].fd)
    for i in range(p.other_n):
        close(p.others[i].fd)
    for i in range(2):
        close_listener(p, i)
    if p.timer_fd >= 0:
        close(p.timer_fd)
    p.candidate_n = p.other_n = 0
    p.timer_fd = -1
