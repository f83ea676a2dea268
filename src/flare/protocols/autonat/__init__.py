"""AutoNAT: others dial us back, and say how it went (autonat-v1.md, autonat-v2.md)."""

from typing import Final

V1_PROTOCOL: Final = "/libp2p/autonat/1.0.0"
DIAL_PROTOCOL: Final = "/libp2p/autonat/2/dial-request"
DIAL_BACK_PROTOCOL: Final = "/libp2p/autonat/2/dial-back"

DATA_FIRST: Final = 30_000  # bytes that a dial to a foreign IP costs at least,
DATA_LAST: Final = 100_000  # ... and at most (autonat-v2.md, "Amplification Attack Prevention")
REQUEST_LIMIT: Final = 8192  # bytes of one message
ADDRS_LIMIT: Final = 50  # addresses of a request that are looked at
