"""Direct Connection Upgrade through Relay (https://github.com/libp2p/specs/blob/master/relay/DCUtR.md)."""
