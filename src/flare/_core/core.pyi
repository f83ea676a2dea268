"""The ground of the data plane in C; see core.pxd. No names for Python."""
