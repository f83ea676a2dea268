"""Moving the bytes of a link in C; see link_io.pxd. No names for Python."""
