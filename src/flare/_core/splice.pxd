# Relay copying: what one stream receives is written to another, in C, with limits.

from libc.stdint cimport uint8_t, uint64_t

from flare._core.core cimport core, node, timer
from flare._core.shaper cimport draw
from flare._core.yamux cimport stream

cdef enum splice_reason:
    DONE_CLOSED = 1
    DONE_RESET
    DONE_LIMIT
    DONE_DEADLINE
    DONE_LINK
    DONE_CANCELLED

cdef struct way:
    splice_pair* pair
    way* next  # of the link that `source` belongs to, in mux.joined
    way* previous
    stream* source
    stream* target
    uint64_t limit  # 0: none
    uint64_t carried
    uint8_t fin
    draw draw  # the buckets it draws from

cdef struct splice_pair:
    node node
    core* core
    timer timer
    way ways[2]
    int ending  # a side is gone with its last bytes still waiting here: the reason to end with, then
    int reason  # 0: still going


cdef class Splice:
    cdef splice_pair* p
    cdef readonly object a
    cdef readonly object b
    cdef object on_done
    cdef object engine

    cdef int collect(self, list last) except -1
