"""Relay copying (circuit-v2.md): a stream of one link joined to a stream of another, with limits and a
deadline.

What arrives on one side is framed and encrypted straight into the other link's output buffer. What finds no
room there waits in the receiving stream, whose peer gets no new credit for it: back-pressure runs from end to
end. So does what finds no tokens in the buckets that the splice draws from (shaper.pxd).
"""

from typing import NamedTuple

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from flare._core.core cimport (
    bury,
    core,
    core_ref,
    core_reserve,
    core_unref,
    disown,
    enter_at,
    enter_two,
    leave,
    move_lists,
    node,
    node_ops,
    notify,
    timer_clear,
    timer_set,
)
from flare._core.link cimport Link, LinkStream
from flare._core.link_io cimport core_scratch, link, link_move, link_watch
from flare._core.shaper cimport (
    DRAWS,
    Bucket,
    bucket,
    draw,
    draw_allow,
    draw_attach,
    draw_detach,
    draw_move,
    draw_spend,
)
from flare._core.yamux cimport (
    mux,
    stream,
    stream_close_write,
    stream_credit,
    stream_discard,
    stream_hooks,
    stream_peek,
    stream_reset,
    stream_skip,
    stream_store,
    stream_write,
)

from flare.errors import UsageError

cdef tuple REASONS = ("", "closed", "reset", "limit", "deadline", "link", "cancelled")


cdef inline way* from_source(stream* s) noexcept nogil:
    cdef splice_pair* p = <splice_pair*>s.hooked
    return &p.ways[0] if p.ways[0].source == s else &p.ways[1]


cdef inline size_t carry(way* w, const uint8_t* data, size_t n) noexcept nogil:
    cdef size_t taken
    if w.limit:
        n = min(n, <size_t>(w.limit - w.carried))
    taken = carry_shaped(w, data, n) if w.draw.count else stream_write(w.target, data, n)
    w.carried += taken
    return taken


cdef size_t carry_shaped(way* w, const uint8_t* data, size_t n) noexcept nogil:
    """Write as long as there are tokens; on_tokens comes when there are more."""
    cdef size_t total = 0
    cdef size_t allowed
    cdef size_t taken
    while total < n:
        allowed = draw_allow(&w.draw, n - total, w.source.rx.size)
        taken = stream_write(w.target, data + total, allowed)
        draw_spend(&w.draw, taken)
        total += taken
        if taken < allowed or allowed == 0:
            break
    return total


cdef void pump(splice_pair* p, way* w) noexcept nogil:
    """Carry what waits in the source, and then its FIN."""
    cdef const uint8_t* data = NULL
    cdef size_t n
    cdef size_t taken
    while p.reason == 0:
        n = stream_peek(w.source, &data)
        if n == 0:
            break
        taken = carry(w, data, n)
        if p.reason:
            return
        if taken:
            stream_skip(w.source, taken)
        if taken < n:
            if w.limit and w.carried == w.limit:
                finish(p, DONE_LIMIT)
            return
    if p.reason == 0 and w.source.read_closed and not w.fin:
        w.fin = 1
        stream_close_write(w.target)
        if p.ending and not w.source.in_table:
            finish(p, p.ending)
        elif p.ways[0].fin and p.ways[1].fin:
            finish(p, DONE_CLOSED)


cdef int on_data(stream* s, const uint8_t* data, size_t n) noexcept nogil:
    cdef splice_pair* p = <splice_pair*>s.hooked
    cdef way* w = from_source(s)
    cdef size_t taken = 0
    if s.rx.size == 0:
        taken = carry(w, data, n)
        if p.reason:
            return 0
    if taken < n:
        if w.limit and w.carried == w.limit:
            finish(p, DONE_LIMIT)
            return 0
        if stream_store(s, data + taken, n - taken) < 0:
            return -1
    if taken:
        stream_credit(s)
    return 0


cdef void on_fin(stream* s) noexcept nogil:
    pump(<splice_pair*>s.hooked, from_source(s))


cdef void on_writable(stream* s) noexcept nogil:
    cdef splice_pair* p = <splice_pair*>s.hooked
    pump(p, &p.ways[0] if p.ways[0].target == s else &p.ways[1])
    s.allowance = 0  # a turn that is not used up is not saved


cdef void on_tokens(draw* d) noexcept nogil:
    cdef way* w = <way*>d.subject
    pump(<splice_pair*>w.source.hooked, w)


cdef void on_ended(stream* s) noexcept nogil:
    cdef splice_pair* p = <splice_pair*>s.hooked
    cdef way* w = from_source(s)
    cdef int reason = DONE_LINK if s.lost else DONE_RESET
    if p.ending or not s.read_closed or w.fin or not w.target.in_table:
        finish(p, reason)
        return
    # it had half-closed before: the other side gets all of it
    p.ending = reason
    pump(p, w)


cdef stream_hooks hooks
hooks.data = on_data
hooks.fin = on_fin
hooks.writable = on_writable
hooks.ended = on_ended


cdef inline void join(way* w) noexcept nogil:
    cdef mux* m = w.source.mux
    w.previous = NULL
    w.next = <way*>m.joined
    if w.next != NULL:
        w.next.previous = w
    m.joined = w


cdef inline void part(way* w) noexcept nogil:
    if w.next != NULL:
        w.next.previous = w.previous
    if w.previous != NULL:
        w.previous.next = w.next
    else:
        w.source.mux.joined = w.next


cdef void finish(splice_pair* p, int reason) noexcept nogil:
    cdef stream* a = p.ways[0].source
    cdef stream* b = p.ways[1].source
    if p.reason:
        return
    p.reason = reason
    p.core.pairs -= 1
    part(&p.ways[0])
    part(&p.ways[1])
    timer_clear(p.core, &p.timer)
    draw_detach(&p.ways[0].draw)
    draw_detach(&p.ways[1].draw)
    a.hooks = b.hooks = NULL
    a.hooked = b.hooked = NULL
    if reason != DONE_CLOSED:
        stream_reset(a)
        stream_reset(b)
        stream_discard(a)  # what waits here is for nobody, and whoever holds the streams may do so for long
        stream_discard(b)
    notify(p.core, &p.node, 1)


cdef void on_deadline(node* n) noexcept nogil:
    finish(<splice_pair*>n, DONE_DEADLINE)


cdef void pair_orphan(node* n) noexcept nogil:
    finish(<splice_pair*>n, DONE_CANCELLED)
    bury((<splice_pair*>n).core, n)


cdef void pair_free(node* n) noexcept nogil:
    free(n)


cdef void pair_flush(node* n) noexcept nogil:
    pass


cdef core* pair_home(node* n) noexcept nogil:
    return (<splice_pair*>n).core


cdef node_ops pair_ops
pair_ops.home = pair_home
pair_ops.flush = pair_flush
pair_ops.orphan = pair_orphan
pair_ops.free = pair_free


class SpliceResult(NamedTuple):
    """How a splice ended and what it carried."""

    reason: str  # closed, reset, limit, deadline, link, cancelled
    bytes_a_to_b: int
    bytes_b_to_a: int


cdef class Splice:
    """Two streams joined. The engine keeps it until it is done."""

    def __init__(self):
        raise TypeError("a Splice is made by splice()")

    def __dealloc__(self):
        if self.p != NULL:
            disown(self.p.core, &self.p.node)

    def cancel(self):
        if self.p == NULL:
            raise UsageError("a Splice is made by splice()")
        cdef core* c = enter_at(&self.p.core)
        finish(self.p, DONE_CANCELLED)
        leave(c)

    @property
    def bytes_a_to_b(self):
        return self.p.ways[0].carried if self.p != NULL else 0

    @property
    def bytes_b_to_a(self):
        return self.p.ways[1].carried if self.p != NULL else 0

    @property
    def done(self):
        return self.p == NULL or self.p.reason != 0

    cdef int collect(self, list last) except -1:
        result = SpliceResult(REASONS[self.p.reason], self.p.ways[0].carried, self.p.ways[1].carried)
        last.append((self.on_done, result))
        self.on_done = None
        self.engine.splices.discard(self)
        return 0


def splice(
    LinkStream a not None,
    LinkStream b not None,
    *,
    limit_a_to_b=0,
    limit_b_to_a=0,
    deadline_ns=0,
    buckets=(),
    on_done,
):
    cdef stream* sa = a.use_here()
    cdef stream* sb = b.use_here()
    cdef splice_pair* p
    cdef core* c
    cdef Splice self
    cdef int64_t deadline = deadline_ns
    cdef int i
    cdef bucket* shared[DRAWS]
    cdef int count = 0
    cdef int failed = 0
    cdef bint apart = True
    if len(buckets) > DRAWS:
        raise UsageError(f"a splice draws from at most {DRAWS} buckets")
    for each in buckets:
        shared[count] = (<Bucket?>each).b
        count += 1
    if sa == sb:
        raise UsageError("a stream cannot be spliced to itself")
    check_both(a, b)
    self = Splice.__new__(Splice)
    self.a = a
    self.b = b
    self.on_done = on_done
    p = <splice_pair*>calloc(1, sizeof(splice_pair))
    if p == NULL:
        raise MemoryError
    p.ways[0].pair = p.ways[1].pair = p
    p.ways[0].limit = limit_a_to_b
    p.ways[1].limit = limit_b_to_a
    p.node.ops = &pair_ops
    p.timer.subject = &p.node
    p.timer.fire = on_deadline
    p.ways[0].source = p.ways[1].target = sa
    p.ways[1].source = p.ways[0].target = sb
    for i in range(2):
        p.ways[i].draw.resume = on_tokens
        p.ways[i].draw.subject = &p.ways[i]
    try:
        while apart:
            bring_together(sa, sb)
            c = enter_at(&sa.mux.core)
            apart = sb.mux.core != c
            if apart:
                leave(c)
        if sa.reset or sa.lost or sb.reset or sb.lost:
            leave(c)
            check_both(a, b)
    except BaseException:
        free(p)
        raise
    p.core = c
    p.node.held = 1
    p.node.owner = <void*>self
    self.p = p
    core_ref(c)
    if (
        draw_attach(&p.ways[0].draw, c, shared, count) < 0
        or draw_attach(&p.ways[1].draw, c, shared, count) < 0
        or (deadline and timer_set(c, &p.timer, deadline) < 0)
    ):
        draw_detach(&p.ways[0].draw)
        draw_detach(&p.ways[1].draw)
        p.reason = DONE_CANCELLED
        failed = 1
    else:
        c.pairs += 1
        join(&p.ways[0])
        join(&p.ways[1])
        sa.hooks = sb.hooks = &hooks
        sa.hooked = sb.hooked = p
        pump(p, &p.ways[0])
        pump(p, &p.ways[1])
    leave(c)
    if failed:
        raise MemoryError
    self.engine = a.link.engine
    self.engine.splices.add(self)
    return self


cdef int check_both(LinkStream a, LinkStream b) except -1:
    a.check(a.s)
    b.check(b.s)
    if a.s.write_closed or b.s.write_closed:
        raise UsageError("a stream that was closed for writing cannot be spliced")
    return 0


include "splice_move.pxi"
