"""The relay under abuse: `flare relay` as a process, a circuit that transfers all the time, and attackers.

See docs/abuse.md for what must hold. `make abuse` runs it, as root: everything happens in a network namespace
of its own, whose loopback holds 10.66.0.0/16, so that peers come from many addresses and limits per IP count.
"""
