"""The compiled core: bytes, buffers, time. No policy, no asyncio; of flare it knows `flare.errors` only."""
