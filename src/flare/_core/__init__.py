"""The compiled core: bytes, buffers, time. No policy and no asyncio; of flare it knows `flare.errors` only."""
