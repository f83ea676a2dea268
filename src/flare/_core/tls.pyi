"""TLS 1.3 records in C; see tls.pxd. No names for Python."""
