"""The relay as a whole process, beside its peers: `python -m benchmarks.relay`."""
