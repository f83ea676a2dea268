from libc.stdint cimport int64_t

# CLOCK_MONOTONIC, in nanoseconds: the clock of every deadline in the core, and of time.monotonic_ns().
cdef int64_t now_ns() noexcept nogil
# Blocks till `deadline_ns` and returns as close behind it as the machine allows.
cdef void wait_until(int64_t deadline_ns) noexcept nogil
