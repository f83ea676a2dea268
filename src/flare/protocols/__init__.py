"""Exchanges between peers: one role of one exchange per file, straight-line async over a Stream."""
