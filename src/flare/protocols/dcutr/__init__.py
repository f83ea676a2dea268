"""Direct Connection Upgrade through Relay (DCUtR.md).

A dialled the relayed connection, B accepted it. B opens the stream: it is the initiator here, and the server
of what runs over the punched connection; A is the responder here, and the client there.
"""

from typing import Final

PROTOCOL: Final = "/libp2p/dcutr"

CLIENT: Final = "client"
SERVER: Final = "server"
