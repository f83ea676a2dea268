"""yamux in C; see yamux.pxd. No names for Python."""
