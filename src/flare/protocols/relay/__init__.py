"""Circuit Relay v2 (https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md)."""
