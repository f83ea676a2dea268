"""yamux in C; see yamux.pxd."""

def memory() -> tuple[int, int]:
    """Of all sessions of the process: bytes that wait to be read, and bytes by which windows grew."""
