# An engine's own thread: it makes passes and never takes the GIL. It is included by engine.pyx.

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t* thread, const void* attr, void* (*run)(void*) noexcept nogil, void* arg)
    int pthread_join(pthread_t thread, void** result)
    int pthread_setname_np(pthread_t thread, const char* name)
    int pthread_atfork(
        void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil
    )

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t* set)
    int pthread_sigmask(int how, const sigset_t* set, sigset_t* old)
    enum: SIG_SETMASK

cdef enum:
    NAME_MAX = 15  # bytes of a thread's name
    NAP = 1000000  # ns

cdef object driven = weakref.WeakSet()
cdef core* cores = NULL  # those with a thread, by core.driven; changed with the GIL
cdef bint fork_hooked = False


cdef void* drive(void* arg) noexcept nogil:
    cdef core* c = <core*>arg
    while not flare_load32(&c.stop):
        one_pass(c, 0 if c.busy else NAP if c.nap else -1)
    return NULL


cdef int thread_start(core* c, pthread_t* thread, bytes name):
    """0, or an errno. Signals are the interpreter's: the thread has them all blocked."""
    global cores, fork_hooked
    cdef sigset_t all_signals
    cdef sigset_t before
    cdef int error
    if not fork_hooked:
        error = pthread_atfork(before_fork, after_fork, in_child)
        if error:
            return error
        fork_hooked = True
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &before)
    error = pthread_create(thread, NULL, drive, c)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    if error:
        return error
    pthread_setname_np(thread[0], name[:NAME_MAX])
    c.running = True
    c.driven = cores
    cores = c
    return 0


cdef void thread_stop(core* c, pthread_t thread) noexcept:
    global cores
    cdef core** place = &cores
    c.running = False
    while place[0] != c:
        place = &place[0].driven
    place[0] = c.driven
    flare_store32(&c.stop, 1)
    wake_poller(c)
    with nogil:
        pthread_join(thread, NULL)


@atexit.register
def _stop_all():
    """Before the interpreter takes its memory apart."""
    for engine in list(driven):
        (<Engine>engine).halt()


# A fork takes no thread along: the child finds the engines closed, and whole, since no pass was under way.

cdef void before_fork() noexcept nogil:
    cdef core* c = cores
    while c != NULL:
        if c.gil_free:
            flare_add(&c.waiters, 1)
            pthread_mutex_lock(&c.mutex)
            flare_add(&c.waiters, -1)
        c = c.driven


cdef void after_fork() noexcept nogil:
    cdef core* c = cores
    while c != NULL:
        if c.gil_free:
            unlock(c)
        c = c.driven


cdef void in_child() noexcept nogil:
    global cores
    cdef core* c
    while cores != NULL:
        c = cores
        cores = c.driven
        c.running = False
        c.waiters = 0
        c.yielded = False
        c.closed = True
        pthread_cond_init(&c.turn, NULL)
        pthread_mutex_init(&c.mutex, NULL)
        poller_close(c)  # first: its epoll set is the parent's too, and nothing may be taken out of it
        if c.gil_free:
            while c.links != NULL:
                link_die(<link*>c.links, END_LOCAL, 0)
