# The only use of epoll, timerfd and eventfd. Where there is no epoll, poll or kqueue stands in behind the
# same five functions. It is included by engine.pyx.

from libc.errno cimport errno
from libc.limits cimport INT_MAX
from posix.time cimport CLOCK_MONOTONIC, itimerspec
from posix.unistd cimport close, read

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout)
    enum: EPOLL_CLOEXEC
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CTL_DEL
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLERR
    enum: EPOLLHUP

cdef extern from "<sys/timerfd.h>" nogil:
    int timerfd_create(int clockid, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new, itimerspec* old)
    enum: TFD_TIMER_ABSTIME
    enum: TFD_NONBLOCK
    enum: TFD_CLOEXEC

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int poll(pollfd* fds, unsigned long n, int timeout)
    enum: POLLIN

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initial, int flags)
    enum: EFD_NONBLOCK
    enum: EFD_CLOEXEC

cdef enum:
    POLLED = 64  # links heard of in a pass; the kernel turns its list, so the next one hears of others
    PLACE_TIMER = NO_LINK
    PLACE_WAKE = NO_LINK + 1

cdef struct polled:
    uint64_t place
    int what  # watched


cdef int poller_open(core* c) noexcept nogil:
    """0, or an errno."""
    c.poll_fd = epoll_create1(EPOLL_CLOEXEC)
    c.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
    c.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    c.watch = poller_watch
    if c.poll_fd < 0 or c.timer_fd < 0 or c.wake_fd < 0:
        return errno
    return (
        poller_watch(c, c.timer_fd, PLACE_TIMER, 0, WATCH_READ)
        or poller_watch(c, c.wake_fd, PLACE_WAKE, 0, WATCH_READ)
    )


cdef void poller_close(core* c) noexcept nogil:
    if c.poll_fd >= 0:
        close(c.poll_fd)
    if c.timer_fd >= 0:
        close(c.timer_fd)
    if c.wake_fd >= 0:
        close(c.wake_fd)
    if c.told_fd >= 0:
        close(c.told_fd)
    c.poll_fd = c.timer_fd = c.wake_fd = c.told_fd = -1


cdef int poller_watch(core* c, int fd, uint64_t place, int was, int what) noexcept nogil:
    cdef epoll_event event
    cdef int op = EPOLL_CTL_MOD
    event.events = (EPOLLIN if what & WATCH_READ else 0) | (EPOLLOUT if what & WATCH_WRITE else 0)
    event.data.u64 = place
    if not was:
        op = EPOLL_CTL_ADD
    elif not what:
        op = EPOLL_CTL_DEL
    return errno if epoll_ctl(c.poll_fd, op, fd, &event) < 0 else 0


cdef bint poller_ready(int fd, int64_t timeout) noexcept nogil:
    """Wait for a descriptor to be readable, for `timeout` ns, below 0 for ever; or for a signal."""
    cdef pollfd one
    one.fd = fd
    one.events = POLLIN
    return poll(&one, 1, in_milliseconds(timeout)) > 0


cdef inline int in_milliseconds(int64_t timeout) noexcept nogil:
    return <int>min((timeout + 999999) // 1000000, <int64_t>INT_MAX) if timeout >= 0 else -1


cdef void poller_arm(core* c, int64_t deadline) noexcept nogil:
    """Make the poller's descriptor readable at `deadline`; 0: never."""
    cdef itimerspec when
    if deadline == c.armed:
        return
    when.it_interval.tv_sec = when.it_interval.tv_nsec = 0
    when.it_value.tv_sec = deadline // 1000000000
    when.it_value.tv_nsec = deadline % 1000000000
    timerfd_settime(c.timer_fd, TFD_TIMER_ABSTIME, &when, NULL)
    c.armed = deadline


cdef int poller_wait(core* c, polled* out, int64_t timeout, bint* timer) noexcept nogil:
    """Up to POLLED ready links and what for; waits no longer than `timeout` ns, below 0 for ever.

    `timer`: what poller_arm set has gone off. The engine's mutex is not held.
    """
    cdef epoll_event events[POLLED]
    cdef uint64_t ignored
    cdef int count = 0
    cdef int n
    cdef int i
    n = epoll_wait(c.poll_fd, events, POLLED, in_milliseconds(timeout))
    for i in range(n):
        if events[i].data.u64 == PLACE_TIMER:
            read(c.timer_fd, &ignored, 8)
            timer[0] = True
        elif events[i].data.u64 == PLACE_WAKE:
            read(c.wake_fd, &ignored, 8)
        else:
            out[count].place = events[i].data.u64
            out[count].what = 0
            if events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP):
                out[count].what |= WATCH_READ
            if events[i].events & EPOLLOUT:
                out[count].what |= WATCH_WRITE
            count += 1
    return count
