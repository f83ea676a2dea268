"""Connections and streams: sockets, handshakes, dialling."""
