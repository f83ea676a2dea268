"""multistream-select 1.0: two peers agree on a protocol (connections/README.md, "multistream-select").

Each message is a uvarint length, a name and a newline. `ls` is answered `na`, as go-libp2p does now: it is
listed in no current spec and tells strangers what runs here. Nothing is read past the answer: a dialler may
send what belongs to the protocol in the same packet as its proposal.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from typing import Final

from flare.errors import DecodeError, NetworkError, ProtocolNotSupported, ProtocolViolation, UsageError
from flare.transport.channel import Channel
from flare.transport.deadline import within

HEADER: Final = "/multistream/1.0.0"
NOT_AVAILABLE: Final = "na"
MAX_MESSAGE: Final = 1024  # bytes of a name with its newline: defends memory
MAX_PROPOSALS: Final = 32  # refused before the peer is cut off: defends CPU

Supported = Container[str] | Callable[[str], bool]


def encode(name: str) -> bytes:
    """One message: length, name, newline. UsageError for a name that does not fit one."""
    text = name.encode()
    size = len(text) + 1
    if not text or b"\n" in text or size > MAX_MESSAGE:
        raise UsageError(f"{name!r} cannot be a protocol name")
    prefix = bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))
    return prefix + text + b"\n"


_encoded: Final = lru_cache(maxsize=256)(encode)
_HEADER: Final = encode(HEADER)
_NOT_AVAILABLE: Final = encode(NOT_AVAILABLE)


async def select(
    channel: Channel, protocols: Sequence[str], timeout: float, peer: object = "the peer"
) -> str:
    """As the initiator, propose `protocols` in turn and give the first that the peer takes.

    ProtocolNotSupported when it takes none, ProtocolViolation, TimedOut after `timeout` seconds. `peer` is
    for its message.
    """
    if not protocols:
        raise UsageError("no protocol to propose")
    async with within(timeout, f"agreeing with {peer} on {' or '.join(protocols)}"):
        await channel.write(proposal(protocols[0]))
        await _expect_header(channel)
        for index, protocol in enumerate(protocols):
            if index:
                await channel.write(encode(protocol))
            if await _accepted(channel, protocol):
                return protocol
        raise ProtocolNotSupported(protocols)


class Listening:
    """The listener's side of one negotiation, without I/O: each message of the peer's gives an answer."""

    __slots__ = ("_greeted", "_left", "_offered", "refused")

    def __init__(self, offered: Callable[[str], bool]) -> None:
        self._offered = offered
        self._greeted = False
        self._left = MAX_PROPOSALS
        self.refused = ""  # what was proposed last, if we do not speak it

    def take(self, message: bytes) -> tuple[bytes, str | None]:
        """What to send for `message`, and the protocol once it is agreed on.

        ProtocolViolation for what is no greeting, DecodeError.
        """
        if not self._greeted:
            _check_header(message)
            self._greeted = True
            return _HEADER, None
        name = _name(message)
        if self._offered(name):
            return _encoded(name), name
        self._left -= 1
        self.refused = name
        return _NOT_AVAILABLE, None

    @property
    def exhausted(self) -> bool:
        """As many were refused as may be."""
        return not self._left

    def check(self) -> None:
        """ProtocolViolation when it is exhausted."""
        if not self._left:
            raise ProtocolViolation(
                f"the peer proposed {MAX_PROPOSALS} protocols that we do not speak", protocol=HEADER
            )


async def handle(channel: Channel, supported: Supported, timeout: float) -> str:
    """As the listener, answer proposals until one is `supported`, and give that.

    ProtocolViolation for what is no proposal and after MAX_PROPOSALS of them, NetworkError when the peer has
    nothing else to propose (or went on as if its first proposal had been taken), TimedOut after `timeout`
    seconds.
    """
    offered = supported if callable(supported) else supported.__contains__
    return await resume(channel, Listening(offered), timeout)


async def resume(channel: Channel, listening: Listening, timeout: float) -> str:
    """As `handle`, from where a negotiation stands."""
    async with within(timeout, "the peer's choice of a protocol"):
        listening.check()
        while True:
            try:
                answer, name = listening.take(await channel.read_frame(MAX_MESSAGE))
            except (DecodeError, NetworkError) as error:
                if not listening.refused:
                    raise
                raise NetworkError(f"the peer proposed {listening.refused}, which we do not speak") from error
            await channel.write(answer)
            if name is not None:
                return name
            listening.check()


def proposal(protocol: str) -> bytes:
    """What an initiator sends first when it does not wait between header and proposal."""
    return _HEADER + _encoded(protocol)


class Answer:
    """The messages that must come back to a `proposal`: a header, then the protocol's name."""

    __slots__ = ("_header_seen", "awaited", "protocol")

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._header_seen = False
        self.awaited = True  # there is more to come

    def accepts(self, message: bytes) -> bool:
        """Take the next message. False: the peer does not speak the protocol. ProtocolViolation."""
        if not self._header_seen:
            _check_header(message)
            self._header_seen = True
            return True
        self.awaited = False
        return _is_accepted(message, self.protocol)


class Optimistic:
    """A channel that proposes one protocol with the first bytes written, and checks the answer when read.

    It saves the round trip of `select` where there is nothing else to propose. ProtocolNotSupported comes
    from a read.
    """

    def __init__(self, channel: Channel, protocol: str) -> None:
        self._channel = channel
        self._protocol = protocol
        self._proposed = False
        self._answer = Answer(protocol)

    async def read(self, max_bytes: int) -> bytes:
        """As the channel's."""
        await self._confirm()
        return await self._channel.read(max_bytes)

    async def read_exactly(self, n: int) -> bytes:
        """As the channel's."""
        await self._confirm()
        return await self._channel.read_exactly(n)

    async def read_frame(self, limit: int) -> bytes:
        """As the channel's."""
        await self._confirm()
        return await self._channel.read_frame(limit)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """As the channel's."""
        if not self._proposed:
            self._proposed = True
            data = proposal(self._protocol) + bytes(data)
        await self._channel.write(data)

    async def _confirm(self) -> None:
        if not self._proposed:
            await self.write(b"")
        while self._answer.awaited:
            if not self._answer.accepts(await self._channel.read_frame(MAX_MESSAGE)):
                raise ProtocolNotSupported((self._protocol,))


async def _expect_header(channel: Channel) -> None:
    _check_header(await channel.read_frame(MAX_MESSAGE))


async def _accepted(channel: Channel, protocol: str) -> bool:
    return _is_accepted(await channel.read_frame(MAX_MESSAGE), protocol)


async def _receive(channel: Channel) -> str:
    return _name(await channel.read_frame(MAX_MESSAGE))


def _check_header(message: bytes) -> None:
    first = _name(message)
    if first != HEADER:
        raise ProtocolViolation(f"the peer began with {first[:40]!r}", protocol=HEADER)


def _is_accepted(message: bytes, protocol: str) -> bool:
    answer = _name(message)
    if answer == protocol:
        return True
    if answer != NOT_AVAILABLE:
        raise ProtocolViolation(f"the peer answered {answer[:40]!r} to {protocol}", protocol=HEADER)
    return False


def _name(message: bytes) -> str:
    if not message.endswith(b"\n"):
        raise DecodeError("a message without its newline", protocol=HEADER)
    try:
        return message[:-1].decode()
    except UnicodeDecodeError:
        raise DecodeError("a name that is not UTF-8", protocol=HEADER) from None
