from flare._core.core cimport core
from flare._core.link_io cimport link
from flare._core.yamux cimport mux, stream


cdef class Link:
    cdef link* ln
    cdef readonly object engine
    cdef readonly object peername
    cdef public object on_stream
    cdef public object on_close
    cdef public object on_goaway
    cdef public object on_output
    cdef object reason
    cdef dict pings

    cdef link* use(self) except NULL
    cdef void bind(self, object engine, core* c, link* ln)
    cdef object error(self)
    cdef object closed_error(self)
    cdef int collect(self, unsigned int events, list batch, list last) except -1


cdef class LinkStream:
    cdef stream* s
    cdef readonly Link link
    cdef public object on_event

    cdef stream* use(self) except NULL
    cdef stream* use_here(self) except NULL
    cdef int check(self, stream* s) except -1
