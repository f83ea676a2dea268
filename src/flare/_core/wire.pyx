"""Varints, length-delimited frames and protobuf messages, all read through one cursor.

A Schema says which fields a message has. Decoding follows protobuf: unknown fields and fields of another wire
type are skipped, the last scalar wins, embedded messages merge, repeated numbers may be packed. Groups are
refused. Values are collected in one list a message and become an object at the end, when nothing can merge
into them any more.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject_GenericSetAttr
from cpython.unicode cimport PyUnicode_DATA, PyUnicode_KIND, PyUnicode_New, PyUnicode_WRITE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from flare._core.cursor cimport (
    CURSOR_LONG, CURSOR_OK, CURSOR_SHORT, cursor, cursor_fixed64, cursor_take, cursor_uvarint, cursor_varint,
    fixed_write, varint_size, varint_write
)

from flare.errors import DecodeError, UsageError


cdef enum:
    VARINT = 0
    FIXED64 = 1
    DELIMITED = 2
    FIXED32 = 5
    MAX_FIELDS = 32            # of one schema: its numbers live in a C array
    MAX_KEY = 5                # bytes of a field's number and wire type
    MAX_NUMBER = (1 << 29) - 1
    MAX_MESSAGE = 0x7FFFFFFF

cdef const char* BASE58 = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
cdef uint64_t MAX_UVARINT = (<uint64_t>1 << 63) - 1


cdef str reason(int status):
    if status == CURSOR_SHORT:
        return "truncated"
    if status == CURSOR_LONG:
        return "varint too long"
    return "varint not minimal"


def encode_uvarint(n: int) -> bytes:
    """The multiformats varint of `n`, 0 <= n < 2**63. Raises UsageError outside that range."""
    cdef uint8_t out[10]
    if not 0 <= n <= MAX_UVARINT:
        raise UsageError(f"{n} is no unsigned varint: it takes 0 to 2**63 - 1")
    return PyBytes_FromStringAndSize(<char*>out, varint_write(out, <uint64_t>n))


def decode_uvarint(data, Py_ssize_t offset=0) -> tuple[int, int]:
    """(value, offset after it) of the multiformats varint at `offset`. Raises DecodeError when it is
    truncated, over 9 bytes or not minimal."""
    cdef Py_buffer view
    cdef cursor c
    cdef uint64_t value = 0
    cdef int status
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if not 0 <= offset <= view.len:
            raise UsageError(f"offset {offset} lies outside of {view.len} bytes")
        c.ptr = <const uint8_t*>view.buf + offset
        c.end = <const uint8_t*>view.buf + view.len
        status = cursor_uvarint(&c, &value)
        if status != CURSOR_OK:
            raise DecodeError(reason(status))
        return value, c.ptr - <const uint8_t*>view.buf
    finally:
        PyBuffer_Release(&view)


def frame(payload) -> bytes:
    """`payload` behind its length as a multiformats varint."""
    cdef Py_buffer view
    cdef size_t head
    cdef bytes out
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        head = varint_size(<uint64_t>view.len)
        out = PyBytes_FromStringAndSize(NULL, head + view.len)
        varint_write(<uint8_t*>PyBytes_AS_STRING(out), <uint64_t>view.len)
        memcpy(PyBytes_AS_STRING(out) + head, view.buf, view.len)
        return out
    finally:
        PyBuffer_Release(&view)


def base58(data) -> str:
    """`data` in base58btc, each leading zero byte as a `1`. Quadratic: for at most a few hundred bytes."""
    cdef Py_buffer view
    cdef const uint8_t* source
    cdef uint8_t* digits
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t zeros = 0
    cdef Py_ssize_t i
    cdef Py_ssize_t j
    cdef uint32_t carry
    cdef str out
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    source = <const uint8_t*>view.buf
    digits = <uint8_t*>malloc(2 * view.len + 1)  # log(256) / log(58) is 1.37
    if digits == NULL:
        PyBuffer_Release(&view)
        raise MemoryError
    while zeros < view.len and source[zeros] == 0:
        zeros += 1
    for i in range(zeros, view.len):
        carry = source[i]
        for j in range(size):
            carry += <uint32_t>digits[j] << 8
            digits[j] = <uint8_t>(carry % 58)
            carry //= 58
        while carry:
            digits[size] = <uint8_t>(carry % 58)
            carry //= 58
            size += 1
    PyBuffer_Release(&view)
    try:
        out = PyUnicode_New(zeros + size, 127)
        for i in range(zeros):
            PyUnicode_WRITE(PyUnicode_KIND(out), PyUnicode_DATA(out), i, c'1')
        for i in range(size):
            PyUnicode_WRITE(
                PyUnicode_KIND(out), PyUnicode_DATA(out), zeros + i, BASE58[digits[size - 1 - i]]
            )
    finally:
        free(digits)
    return out


def split_components(data, dict protocols) -> tuple:
    """The (protocol, value) pairs of a binary multiaddr.

    `protocols` maps a code to (protocol, its value's size or -1 for a length prefix, whether it must be last,
    check). `check` takes the value and raises ValueError, which passes through. Raises DecodeError.
    """
    cdef Py_buffer view
    cdef cursor c
    cdef uint64_t number = 0
    cdef int64_t size
    cdef int status = CURSOR_OK
    cdef const uint8_t* start
    cdef tuple entry
    cdef list parts = []
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        c.ptr = <const uint8_t*>view.buf
        c.end = c.ptr + view.len
        while c.ptr < c.end:
            status = cursor_uvarint(&c, &number)
            if status != CURSOR_OK:
                raise DecodeError(reason(status))
            entry = <tuple>protocols.get(number)
            if entry is None:
                raise DecodeError(f"unknown protocol code {number}")
            size = entry[1]
            if size < 0:
                status = cursor_uvarint(&c, &number)
                if status != CURSOR_OK:
                    raise DecodeError(reason(status))
                size = <int64_t>number
            start = cursor_take(&c, <uint64_t>size)
            if start == NULL:
                raise DecodeError(reason(CURSOR_SHORT))
            if entry[2] and c.ptr < c.end:
                raise DecodeError("something follows a path")
            value = PyBytes_FromStringAndSize(<const char*>start, <Py_ssize_t>size)
            entry[3](value)
            parts.append((entry[0], value))
        return tuple(parts)
    finally:
        PyBuffer_Release(&view)


cdef class Field:
    """One field of a message.

    `required`: decoding without it fails. Otherwise `default` stands for an absent field; a default that is
    not None is also left out when encoding (implicit presence). `convert` makes the final value of bytes and
    raises ValueError for bad ones, which fails the message or, when `lenient`, counts as absent. Of a
    repeated one that is no number the first `most` values are read (0: all), and the rest skipped.
    """

    def __init__(self, int number, str name, Kind kind, *, repeated=False, required=False, default=None,
                 convert=None, lenient=False, schema=None, enum=None, Py_ssize_t most=0):
        if not 1 <= number <= MAX_NUMBER:
            raise UsageError(f"{name}: {number} is no field number")
        if (kind == MESSAGE) != (schema is not None) or (kind == ENUM) != (enum is not None):
            raise UsageError(f"{name}: a message needs its schema and an enum its class")
        self.number = number
        self.name = name
        self.kind = kind
        self.repeated = repeated
        self.most = most
        self.required = required
        self.default = () if repeated else default
        self.convert = convert
        self.lenient = lenient
        self.schema = schema
        self.members = {int(member): member for member in enum} if enum is not None else None


cdef object number_value(Field field, uint64_t raw):
    """The Python value of a number, narrow ones of its low bits; None for an unknown enum member."""
    if field.kind == UINT64 or field.kind == FIXED:
        return raw
    if field.kind == UINT32:
        return <uint32_t>raw
    if field.kind == INT64:
        return <int64_t>raw
    if field.kind == BOOL:
        return raw != 0
    if field.kind == ENUM:
        return field.members.get(<int32_t>raw)
    return <int32_t>raw


cdef inline int number_type(Field field) noexcept:
    """The wire type of a number that is not packed."""
    return FIXED64 if field.kind == FIXED else VARINT


cdef inline int read_number(cursor* c, int wire_type, uint64_t* raw) noexcept:
    """A number of `wire_type`; of DELIMITED its length."""
    return cursor_fixed64(c, raw) if wire_type == FIXED64 else cursor_varint(c, raw)


cdef inline int store(Field field, list values, Py_ssize_t index, object value) except -1:
    if field.repeated:
        if values[index] is None:
            values[index] = [value]
        else:
            (<list>values[index]).append(value)
    else:
        values[index] = value
    return 0


cdef int skip(cursor* c, int wire_type) noexcept nogil:
    """Steps over one field's value; CURSOR_OK, what is wrong, or 1 for a wire type that cannot be skipped."""
    cdef uint64_t length = 0
    cdef int status
    if wire_type == VARINT:
        return cursor_varint(c, &length)
    if wire_type == DELIMITED:
        status = cursor_varint(c, &length)
        if status != CURSOR_OK:
            return status
    elif wire_type == FIXED64:
        length = 8
    elif wire_type == FIXED32:
        length = 4
    else:
        return 1
    return CURSOR_SHORT if cursor_take(c, length) == NULL else CURSOR_OK


cdef class Schema:
    """The fields of one message class, whose attributes carry the fields' names."""

    def __init__(self, type cls, fields):
        cdef Py_ssize_t i
        self.cls = cls
        self.name = cls.__name__
        self.fields = tuple(sorted(fields, key=lambda field: field.number))
        if len(self.fields) > MAX_FIELDS:
            raise UsageError(f"{self.name}: more than {MAX_FIELDS} fields")
        self.count = len(self.fields)
        for i in range(self.count):
            self.numbers[i] = (<Field>self.fields[i]).number
            if i and self.numbers[i] == self.numbers[i - 1]:
                raise UsageError(f"{self.name}: two fields have number {self.numbers[i]}")

    def decode(self, data):
        """The message in `data`, all of it. Raises DecodeError."""
        cdef Py_buffer view
        cdef cursor c
        cdef list values = [None] * self.count
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            c.ptr = <const uint8_t*>view.buf
            c.end = c.ptr + view.len
            self.read(&c, values)
        finally:
            PyBuffer_Release(&view)
        return self.build(values)

    def encode(self, message) -> bytes:
        """`message` in protobuf, fields by number. Raises UsageError for values that a field cannot hold."""
        cdef writer out
        out.size = 0
        out.room = 256
        out.data = <uint8_t*>malloc(out.room)
        if out.data == NULL:
            raise MemoryError
        try:
            self.write(&out, message)
            return PyBytes_FromStringAndSize(<char*>out.data, out.size)
        finally:
            free(out.data)

    cdef int read(self, cursor* c, list values) except -1:
        cdef uint64_t key = 0
        cdef uint64_t number
        cdef int wire_type, status
        cdef Py_ssize_t i
        cdef const uint8_t* start
        while c.ptr < c.end:
            start = c.ptr
            status = cursor_varint(c, &key)
            if status != CURSOR_OK:
                raise DecodeError(f"{self.name}: {reason(status)}")
            if c.ptr - start > MAX_KEY:
                raise DecodeError(f"{self.name}: key too long")
            number = key >> 3
            wire_type = key & 7
            if not 1 <= number <= MAX_NUMBER:
                raise DecodeError(f"{self.name}: {number} is no field number")
            for i in range(self.count):
                if <uint64_t>self.numbers[i] == number and self.read_known(c, wire_type, i, values):
                    break
            else:
                status = skip(c, wire_type)
                if status == 1:
                    raise DecodeError(f"{self.name}: wire type {wire_type} of field {number}")
                if status != CURSOR_OK:
                    raise DecodeError(f"{self.name}: {reason(status)} in field {number}")
        return 0

    cdef int read_known(self, cursor* c, int wire_type, Py_ssize_t index, list values) except -1:
        """Reads one value of field `index`; 0 for another wire type, which makes it an unknown field."""
        cdef Field field = <Field>self.fields[index]
        cdef bint number = field.kind < STRING
        cdef int plain = number_type(field) if number else DELIMITED
        cdef bint packed = number and field.repeated and wire_type == DELIMITED
        cdef uint64_t raw = 0
        cdef cursor part
        cdef int status
        cdef object value
        if wire_type != plain and not packed:
            return 0
        status = read_number(c, wire_type, &raw)
        if status != CURSOR_OK:
            raise DecodeError(f"{self.name}.{field.name}: {reason(status)}")
        if wire_type != DELIMITED:
            value = number_value(field, raw)
            if value is not None:
                store(field, values, index, value)
            return 1
        part.ptr = cursor_take(c, raw)
        if part.ptr == NULL:
            raise DecodeError(f"{self.name}.{field.name}: {reason(CURSOR_SHORT)}")
        part.end = part.ptr + raw
        if field.most and values[index] is not None and len(<list>values[index]) >= field.most:
            return 1
        if field.kind == BYTES or field.kind == STRING:
            store(field, values, index, PyBytes_FromStringAndSize(<const char*>part.ptr, <Py_ssize_t>raw))
        elif field.kind == MESSAGE:
            if not field.repeated and values[index] is not None:
                value = values[index]  # merges, as protobuf says
            else:
                value = [None] * field.schema.count
                store(field, values, index, value)
            field.schema.read(&part, value)
        else:
            while part.ptr < part.end:
                status = read_number(&part, plain, &raw)
                if status != CURSOR_OK:
                    raise DecodeError(f"{self.name}.{field.name}: {reason(status)}")
                value = number_value(field, raw)
                if value is not None:
                    store(field, values, index, value)
        return 1

    cdef object build(self, list values):
        cdef Field field
        cdef Py_ssize_t i
        cdef object value
        cdef object message = self.cls.__new__(self.cls)
        for i in range(self.count):
            field = <Field>self.fields[i]
            value = values[i]
            if value is not None:
                if field.repeated:
                    if field.kind >= STRING:
                        value = [final(self, field, item) for item in value]
                        if field.lenient:
                            value = [item for item in value if item is not None]
                    value = tuple(value)
                else:
                    value = final(self, field, value)
            if value is None:
                if field.required:
                    raise DecodeError(f"{self.name}: {field.name} is missing")
                value = field.default
            PyObject_GenericSetAttr(message, field.name, value)  # it is frozen, and its __init__ slower
        return message

    cdef int write(self, writer* out, object message) except -1:
        cdef Field field
        cdef object value
        if not isinstance(message, self.cls):
            raise UsageError(f"expected a {self.name}, not {type(message).__name__}")
        for item in self.fields:
            field = <Field>item
            value = getattr(message, field.name)
            if field.repeated:
                for element in value:
                    self.write_one(out, field, element)
            elif value is None:
                if field.required:
                    raise UsageError(f"{self.name}: {field.name} is missing")
            elif field.required or field.default is None or value != field.default:
                self.write_one(out, field, value)
        return 0

    cdef int write_one(self, writer* out, Field field, object value) except -1:
        cdef bytes raw
        cdef size_t start, length, head
        if field.kind == FIXED:
            put_varint(out, <uint64_t>field.number << 3 | FIXED64)
            grow(out, 8)
            fixed_write(out.data + out.size, number_bits(self, field, value))
            out.size += 8
            return 0
        if field.kind < STRING:
            put_varint(out, <uint64_t>field.number << 3 | VARINT)
            put_varint(out, number_bits(self, field, value))
            return 0
        put_varint(out, <uint64_t>field.number << 3 | DELIMITED)
        if field.kind == MESSAGE:
            # Its length comes first and is known last: leave one byte, which nearly always is enough.
            start = out.size
            grow(out, 1)
            out.size += 1
            field.schema.write(out, value)
            length = out.size - start - 1
            head = varint_size(length)
            if head > 1:
                grow(out, head - 1)
                memmove(out.data + start + head, out.data + start + 1, length)
                out.size += head - 1
            varint_write(out.data + start, length)
            return 0
        if field.kind == STRING:
            if not isinstance(value, str):
                raise UsageError(f"{self.name}.{field.name} takes str, not {type(value).__name__}")
            raw = (<str>value).encode()
        elif type(value) is bytes:
            raw = <bytes>value
        elif isinstance(value, (bytes, bytearray, memoryview)) or hasattr(value, "__bytes__"):
            raw = bytes(value)
        else:
            raise UsageError(f"{self.name}.{field.name} takes bytes, not {type(value).__name__}")
        length = PyBytes_GET_SIZE(raw)
        put_varint(out, length)
        grow(out, length)
        memcpy(out.data + out.size, PyBytes_AS_STRING(raw), length)
        out.size += length
        return 0


cdef object final(Schema schema, Field field, object value):
    """What the dataclass holds for one collected value; None for what a lenient field drops."""
    if field.kind == MESSAGE:
        return field.schema.build(value)
    if field.kind == STRING:
        try:
            return (<bytes>value).decode()
        except UnicodeDecodeError:
            raise DecodeError(f"{schema.name}.{field.name}: not UTF-8") from None
    if field.convert is None:
        return value
    try:
        return field.convert(value)
    except ValueError as error:
        if field.lenient:
            return None
        raise DecodeError(f"{schema.name}.{field.name}: {error}") from None


cdef uint64_t number_bits(Schema schema, Field field, object value) except? 0xDEAD:
    cdef object low = 0
    cdef object high = 0xFFFF_FFFF_FFFF_FFFF
    if field.kind == UINT32:
        high = 0xFFFF_FFFF
    elif field.kind == BOOL:
        high = 1
    elif field.kind == INT64:
        low, high = -(1 << 63), (1 << 63) - 1
    elif field.kind == INT32 or field.kind == ENUM:
        low, high = -(1 << 31), (1 << 31) - 1
    if not isinstance(value, int):
        raise UsageError(f"{schema.name}.{field.name} takes int, not {type(value).__name__}")
    if not low <= value <= high:
        raise UsageError(f"{schema.name}.{field.name}: {value} is out of range")
    if value < 0:
        return <uint64_t><int64_t>value
    return <uint64_t>value


cdef int grow(writer* out, size_t more) except -1:
    cdef size_t room = out.room
    cdef uint8_t* data
    if out.size + more <= room:
        return 0
    if out.size + more > MAX_MESSAGE:
        raise UsageError("a protobuf message holds less than 2 GiB")
    while room < out.size + more:
        room *= 2
    data = <uint8_t*>realloc(out.data, room)
    if data == NULL:
        raise MemoryError
    out.data = data
    out.room = room
    return 0


cdef int put_varint(writer* out, uint64_t value) except -1:
    grow(out, 10)
    out.size += varint_write(out.data + out.size, value)
    return 0
