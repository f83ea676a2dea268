"""Datagrams of one UDP socket in batches, and whose they are: the demultiplexer of QUIC.

What is nobody's costs a share of a system call and a look at its first bytes; it is no Python object then.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy

import errno
import os

from flare._core.datagram cimport (
    FLARE_CHUNK,
    flare_has_gso,
    flare_host,
    flare_inbox,
    flare_inbox_free,
    flare_inbox_open,
    flare_is_named,
    flare_outbox,
    flare_parse,
    flare_receive,
    flare_send,
    flare_tell_destination,
    flare_unname,
)
from flare._core.sockets cimport flare_address, flare_port
from flare.errors import UsageError

ROUTED = 0
INITIAL = 1
VERSION = 2
STRAY = 3
RESET = 4
RAW = 5

CID = 8

cdef enum:
    KIND_ROUTED = 0
    KIND_INITIAL = 1
    KIND_VERSION = 2
    KIND_STRAY = 3
    KIND_RESET = 4
    KIND_RAW = 5
    KIND_NOBODYS = 6
    CID_SIZE = 8
    TOKEN_SIZE = 16
    FULL = 1200          # bytes: less starts no connection (RFC 9000, 14.1)
    LEAST_STRAY = 22     # a stateless reset of 21 bytes must be shorter than what it answers (RFC 9000, 10.3)
    LEAST_RESET = 21
    CID_MAX = 20         # bytes (RFC 9000, 17.2)
    FIXED_BIT = 0x40
    LONG = 0x80


def address(str host, int port):
    """(host, port) as `Datagrams.receive` would name it. UsageError for what is no IP address."""
    cdef flare_address parsed
    _parse(host, port, &parsed)
    return _named(&parsed)


cdef int _parse(host, int port, flare_address* out) except -1:
    cdef bytes text = (<str?>host).encode()
    if not flare_parse(text, port, out):
        raise UsageError(f"{host}:{port} is no IP address and port")
    return 0


cdef tuple _named(const flare_address* from_):
    cdef char host[80]
    if not flare_host(from_, host, sizeof(host)):
        raise UsageError("an address of another family")
    return ((<bytes>host).decode(), flare_port(from_))


cdef tuple _named_with(const flare_address* from_, const flare_address* to):
    """The sender, and where it came to if the socket is bound to a wildcard."""
    cdef tuple name = _named(from_)
    return (name[0], name[1], _named(to)[0]) if flare_is_named(to) else name


cdef class Datagrams:
    """See udp.pyi."""

    cdef readonly int fd
    cdef readonly bint gro
    cdef int _gso
    cdef flare_inbox _inbox
    cdef flare_outbox _outbox
    cdef object _owner
    cdef readonly dict routes
    cdef readonly dict tokens
    cdef readonly dict expected
    cdef readonly unsigned long long received
    cdef readonly unsigned long long dropped
    cdef readonly unsigned long long sent
    cdef readonly unsigned long long unsendable

    def __cinit__(self, int fd, *, bint gro=True, bint gso=True):
        cdef int has_gro = flare_inbox_open(&self._inbox, fd, gro)
        if has_gro < 0:
            raise MemoryError
        self.fd = fd
        flare_tell_destination(fd)
        self.gro = has_gro
        self._gso = gso and flare_has_gso()
        self.routes = {}
        self.tokens = {}
        self.expected = {}

    def __dealloc__(self):
        flare_inbox_free(&self._inbox)

    @property
    def gso(self):
        return bool(self._gso)

    # In

    def receive(self, int unsolicited=64):
        cdef int error, i
        cdef size_t at, size, step
        cdef unsigned char* data
        cdef flare_address* from_
        cdef flare_address* to
        cdef flare_address last, last_to
        cdef tuple name = None
        cdef list out = []
        cdef int kind
        with nogil:
            error = flare_receive(self.fd, &self._inbox)
        if error:
            if error == errno.EAGAIN or error == errno.EWOULDBLOCK:
                return None
            raise OSError(error, os.strerror(error))
        for i in range(self._inbox.count):
            from_ = &self._inbox.from_[i]
            to = &self._inbox.to[i]
            if name is not None and not (
                memcmp(from_, &last, sizeof(last)) == 0 and memcmp(to, &last_to, sizeof(last_to)) == 0
            ):
                name = None
            memcpy(&last, from_, sizeof(last))
            memcpy(&last_to, to, sizeof(last_to))
            data = self._inbox.memory + i * self._inbox.slot
            size = self._inbox.size[i]
            step = self._inbox.segment[i] or size
            at = 0
            while at < size:
                if step > size - at:
                    step = size - at
                self.received += 1
                self._owner = None
                kind = self._whose(data + at, step)
                if kind != KIND_ROUTED and kind != KIND_RESET:
                    if self.expected:
                        if name is None:
                            name = _named_with(from_, to)
                        if kind != KIND_INITIAL and (<str>name[0]) in self.expected:
                            kind = KIND_RAW
                            self._owner = self.expected[name[0]]
                    if kind == KIND_NOBODYS or unsolicited <= 0:
                        self.dropped += 1
                        at += step
                        continue
                    unsolicited -= 1
                if name is None:
                    name = _named_with(from_, to)
                out.append((kind, self._owner, PyBytes_FromStringAndSize(<char*>data + at, step), name))
                at += step
        self._owner = None
        return out

    cdef int _whose(self, const unsigned char* data, size_t size) except -1:
        """What a datagram is, and in `_owner` whose if it has one (RFC 9000, 17.2 and 17.3)."""
        cdef uint32_t version
        cdef size_t cid_size
        cdef object found
        if size < LEAST_RESET:
            return KIND_NOBODYS
        if data[0] & LONG:
            version = <uint32_t>data[1] << 24 | <uint32_t>data[2] << 16 | <uint32_t>data[3] << 8 | data[4]
            cid_size = data[5]
            if cid_size > CID_MAX or 7 + cid_size > size:
                return KIND_NOBODYS
            if cid_size == CID_SIZE:
                found = self.routes.get(PyBytes_FromStringAndSize(<const char*>data + 6, CID_SIZE))
                if found is not None:
                    self._owner = found
                    return KIND_ROUTED
            if version == 0 or size < FULL:
                return KIND_NOBODYS
            if version != 1:
                return KIND_VERSION
            if not data[0] & FIXED_BIT or data[0] & 0x30 or cid_size < CID_SIZE:
                return KIND_NOBODYS
            return KIND_INITIAL
        if data[0] & FIXED_BIT:
            found = self.routes.get(PyBytes_FromStringAndSize(<const char*>data + 1, CID_SIZE))
            if found is not None:
                self._owner = found
                return KIND_ROUTED
        if self.tokens:
            found = self.tokens.get(
                PyBytes_FromStringAndSize(<const char*>data + size - TOKEN_SIZE, TOKEN_SIZE)
            )
            if found is not None:
                self._owner = found
                return KIND_RESET
        return KIND_STRAY if size >= LEAST_STRAY and data[0] & FIXED_BIT else KIND_NOBODYS

    # Out

    def send(self, list datagrams, int first=0):
        cdef Py_ssize_t total = len(datagrams), at = first
        cdef object last = None, to
        cdef bytes data
        cdef tuple item
        cdef int i, done, gso
        cdef flare_outbox* box = &self._outbox
        while at < total:
            box.count = box.addresses = box.errors = 0
            last = None
            while box.count < FLARE_CHUNK and at + box.count < total:
                item = <tuple?>datagrams[at + box.count]
                data = <bytes?>item[0]
                to = item[1]
                if to is not last:
                    _parse((<tuple?>to)[0], to[1], &box.address[box.addresses])
                    if len(<tuple>to) > 2:
                        _parse(to[2], 0, &box.via[box.addresses])
                    else:
                        flare_unname(&box.via[box.addresses])
                    box.addresses += 1
                    last = to
                i = box.count
                box.data[i] = <const unsigned char*>PyBytes_AS_STRING(data)
                box.size[i] = PyBytes_GET_SIZE(data)
                box.to[i] = box.addresses - 1
                box.count += 1
            gso = self._gso
            with nogil:
                done = flare_send(self.fd, box, 0, &gso)
            self._gso = gso
            self.sent += done - box.errors
            self.unsendable += box.errors
            at += done
            if done < box.count:
                break
        return at
