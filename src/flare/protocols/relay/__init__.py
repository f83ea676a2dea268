"""Circuit Relay v2 (circuit-v2.md): one role of one exchange per file.

hop      the relay: grants reservations, joins circuits
book     the relay's books, with rates
access   lists of who may use the relay, and whose limits do not count
shaping  which token buckets a circuit draws its bytes from
splicing what the relay needs of the core's splice, and what it counts
ask      the shape of every request: one message there, a STATUS back
stop     the second hop: the relay asks, the target answers
reserve  a client asks a relay for a reservation
connect  a client asks a relay for a circuit
"""

from typing import Final

HOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/stop"
