"""What a relay or any host tells its operator: /metrics, /healthz, a status page, and the same as JSON.

Counters are read when somebody asks; between two requests the room costs one sample a second of a few
numbers, and something per connection, circuit and peer, never per byte.
"""
