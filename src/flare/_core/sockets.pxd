# The few system calls of the punch, with stand-ins where a system lacks Linux's.

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <netinet/in.h>
    #include <poll.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <time.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <sys/syscall.h>
    #include <sys/timerfd.h>
    #endif

    #define FLARE_SECOND 1000000000LL

    typedef union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } flare_address;

    static inline int64_t flare_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * FLARE_SECOND + now.tv_nsec;
    }

    static inline void flare_relax(void) {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("yield");
    #endif
    }

    /* A thread with a short slice is soon on a processor when it wakes, where others are busy: Linux 6.12
       lets anyone ask for it, older ones ignore it. Returns what flare_calm takes; 0: nothing was set. */
    typedef struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t slice, deadline, period;
    } flare_schedule;

    static uint64_t flare_set_slice(uint64_t slice) {
    #if defined(SYS_sched_getattr) && defined(SYS_sched_setattr)
        flare_schedule now;
        uint64_t before;
        memset(&now, 0, sizeof now);
        if (syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) != 0 || now.policy != 0) return 0;
        before = now.slice;
        now.size = sizeof now;
        now.slice = slice;
        return syscall(SYS_sched_setattr, 0, &now, 0) == 0 ? before : 0;
    #else
        return 0;
    #endif
    }

    static uint64_t flare_hurry(void) {
        return flare_set_slice(100000);
    }

    static void flare_calm(uint64_t before) {
        if (before) flare_set_slice(before);
    }

    /* a descriptor that becomes readable at `when`, or -1 where there is none to be had */
    static int flare_timer(int64_t when) {
    #ifdef __linux__
        struct itimerspec spec = {{0, 0}, {when / FLARE_SECOND, when % FLARE_SECOND}};
        int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (fd >= 0 && timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, NULL) != 0) { close(fd); fd = -1; }
        return fd;
    #else
        return -1;
    #endif
    }

    /* for want of a timer descriptor; returns early on a signal */
    static void flare_nap_until(int64_t when) {
    #ifdef __APPLE__
        int64_t left = when - flare_now();
        struct timespec span = {left / FLARE_SECOND, left % FLARE_SECOND};
        if (left > 0) nanosleep(&span, NULL);
    #else
        struct timespec at = {when / FLARE_SECOND, when % FLARE_SECOND};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
    #endif
    }

    static int flare_ready(int fd) {  /* non-blocking and closed on exec, where no flag said so at birth */
    #ifndef __linux__
        if (fd >= 0) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); fcntl(fd, F_SETFD, FD_CLOEXEC); }
    #endif
        return fd;
    }

    static int flare_accept(int listener, flare_address *from) {
        socklen_t size = sizeof *from;
    #ifdef __linux__
        return accept4(listener, &from->any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    #else
        return flare_ready(accept(listener, &from->any, &size));
    #endif
    }

    static socklen_t flare_address_size(const flare_address *address) {
        return address->any.sa_family == AF_INET ? sizeof address->v4 : sizeof address->v6;
    }

    /* a non-blocking TCP socket bound to `local`, sharing its port with all made so; -1 and errno */
    static int flare_bound_socket(const flare_address *local) {
        int on = 1, fd, error;
    #ifdef __linux__
        fd = socket(local->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    #else
        fd = flare_ready(socket(local->any.sa_family, SOCK_STREAM, 0));
    #endif
        if (fd < 0) return -1;
        if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0
            && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0
            && (local->any.sa_family == AF_INET
                || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0)
            && bind(fd, &local->any, flare_address_size(local)) == 0)
            return fd;
        error = errno;
        close(fd);
        errno = error;
        return -1;
    }

    static int flare_connect(int fd, const flare_address *to) {
        return connect(fd, &to->any, flare_address_size(to)) == 0 ? 0 : errno;
    }

    /* how a connect went: 0 when connected */
    static int flare_connect_result(int fd) {
        int error = 0;
        socklen_t size = sizeof error;
        flare_address peer;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
        if (error != 0) return error;
        size = sizeof peer;
        return getpeername(fd, &peer.any, &size) == 0 ? 0 : ECONNRESET;
    }

    static void flare_unmap(flare_address *address) {  /* ::ffff:a.b.c.d, as a dual-stack listener says it */
        struct sockaddr_in v4;
        if (address->any.sa_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr)) return;
        memset(&v4, 0, sizeof v4);
        v4.sin_family = AF_INET;
        v4.sin_port = address->v6.sin6_port;
        memcpy(&v4.sin_addr, address->v6.sin6_addr.s6_addr + 12, 4);
        address->v4 = v4;
    }

    static int flare_same_ip(const flare_address *a, const flare_address *b) {
        if (a->any.sa_family != b->any.sa_family) return 0;
        if (a->any.sa_family == AF_INET) return a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
        return memcmp(&a->v6.sin6_addr, &b->v6.sin6_addr, 16) == 0;
    }

    static int flare_is_v6(const flare_address *a) {
        return a->any.sa_family == AF_INET6;
    }

    static const char *flare_address_ip(const flare_address *a) {
        return flare_is_v6(a) ? (const char *)&a->v6.sin6_addr : (const char *)&a->v4.sin_addr;
    }

    static unsigned flare_scope(const flare_address *a) {
        return flare_is_v6(a) ? a->v6.sin6_scope_id : 0;
    }

    static void flare_make_address(flare_address *out, int v6, const char *ip, int port, unsigned scope) {
        memset(out, 0, sizeof *out);
        if (v6) {
            out->v6.sin6_family = AF_INET6;
            out->v6.sin6_port = htons(port);
            out->v6.sin6_scope_id = scope;
            memcpy(&out->v6.sin6_addr, ip, 16);
        } else {
            out->v4.sin_family = AF_INET;
            out->v4.sin_port = htons(port);
            memcpy(&out->v4.sin_addr, ip, 4);
        }
    }

    static int flare_port(const flare_address *a) {
        return ntohs(a->any.sa_family == AF_INET ? a->v4.sin_port : a->v6.sin6_port);
    }

    /* whether a connect met itself: the simultaneous open of a socket with its own address */
    static int flare_is_self(int fd) {
        flare_address here, there;
        socklen_t size = sizeof here;
        if (getsockname(fd, &here.any, &size) != 0) return 0;
        size = sizeof there;
        if (getpeername(fd, &there.any, &size) != 0) return 0;
        return flare_same_ip(&here, &there) && flare_port(&here) == flare_port(&there);
    }

    /* what a connected socket holds: 1 bytes to read, 0 nothing yet, -1 it ended */
    static int flare_peek(int fd) {
        char byte;
        ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        if (n > 0) return 1;
        return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) ? 0 : -1;
    }

    /* a connection that lost is reset: TIME_WAIT would keep its pair of addresses from the next punch */
    static void flare_abort(int fd) {
        struct linger none = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
        close(fd);
    }

    /* 0, or what keeps this descriptor from serving as a listener here */
    static int flare_listener_fault(int fd) {
        int on = 0, flags = fcntl(fd, F_GETFL);
        socklen_t size = sizeof on;
        if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &size) != 0) return errno;
        if (!on) return EINVAL;
        return flags & O_NONBLOCK ? 0 : EWOULDBLOCK;
    }
    """
    enum:
        POLLIN
        POLLOUT

    cdef struct pollfd:
        int fd
        short events
        short revents

    ctypedef unsigned long nfds_t
    int poll(pollfd* fds, nfds_t n, int timeout_ms) noexcept nogil
    int flare_listen "listen"(int fd, int backlog) noexcept nogil
    int close(int fd) noexcept nogil

    ctypedef union flare_address:
        pass

    int64_t flare_now() noexcept nogil
    void flare_relax() noexcept nogil
    uint64_t flare_hurry() noexcept nogil
    void flare_calm(uint64_t before) noexcept nogil
    int flare_timer(int64_t when) noexcept nogil
    void flare_nap_until(int64_t when) noexcept nogil
    int flare_accept(int listener, flare_address* origin) noexcept nogil
    int flare_bound_socket(const flare_address* local) noexcept nogil
    int flare_connect(int fd, const flare_address* to) noexcept nogil
    int flare_connect_result(int fd) noexcept nogil
    void flare_unmap(flare_address* address) noexcept nogil
    bint flare_same_ip(const flare_address* a, const flare_address* b) noexcept nogil
    bint flare_is_v6(const flare_address* a) noexcept nogil
    const char* flare_address_ip(const flare_address* a) noexcept nogil
    unsigned flare_scope(const flare_address* a) noexcept nogil
    void flare_make_address(
        flare_address* out, bint v6, const char* ip, int port, unsigned scope
    ) noexcept nogil
    int flare_port(const flare_address* a) noexcept nogil
    bint flare_is_self(int fd) noexcept nogil
    int flare_peek(int fd) noexcept nogil
    void flare_abort(int fd) noexcept nogil
    int flare_listener_fault(int fd) noexcept nogil
