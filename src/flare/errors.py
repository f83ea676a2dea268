"""Everything flare raises, in one tree. Local misuse, remote violation and plain failure are branches.

FlareError
+-- UsageError (ValueError)        the caller's mistake: fix the call
|   +-- InvalidMultiaddr
|   +-- InvalidPeerId
|   +-- InvalidKey
+-- ProtocolViolation              the peer broke a protocol: it costs that peer its stream or connection
|   +-- DecodeError                bytes that are no message: truncated, malformed, out of range
|   |   +-- FrameTooLarge
|   +-- AuthenticationFailed       a signature, a tag or a certificate that does not verify
|       +-- PeerMismatch           somebody else answered
+-- NetworkError (OSError)         the world's fault: may work later or elsewhere
|   +-- DialFailed                 every address failed; `attempts` says how each did
|   +-- ConnectionClosed
|   +-- StreamClosed               the stream ended before what was asked for
|   +-- StreamReset
|   +-- ProtocolNotSupported       the peer speaks none of the protocols asked for
|   +-- LimitedConnection          not allowed over a relayed connection with limits
|   +-- ResourceLimit              one of our own limits refused it
|   +-- NoReservation              we hold none, and were asked for what needs one
+-- TimedOut (TimeoutError)        `what` took longer than `seconds`
+-- RelayRefused                   a relay said no; `status` is its wire status
|   +-- ReservationRefused
|   +-- ResourceLimitExceeded
|   +-- PermissionDenied
|   +-- RelayConnectionFailed
|   +-- PeerHasNoReservation
|   +-- RelayedMessageMalformed
|   +-- RelayedMessageUnexpected
+-- PortMappingRefused             our router maps no port for us; `code` is what its protocol calls that
+-- PunchFailed                    no direct connection; `reason` says why in a sentence
"""

from __future__ import annotations

from collections.abc import Sequence


class FlareError(Exception):
    """Anything flare raises on purpose."""


class UsageError(FlareError, ValueError):
    """The caller's mistake."""


class InvalidMultiaddr(UsageError):
    """Text or bytes that are no multiaddr."""


class InvalidPeerId(UsageError):
    """Text or bytes that are no peer id."""


class InvalidKey(UsageError):
    """A key that cannot be read or has the wrong kind."""


class ProtocolViolation(FlareError):
    """The peer broke a protocol. `protocol` names it, the message says how."""

    def __init__(self, message: str, *, protocol: str = "") -> None:
        super().__init__(f"{protocol}: {message}" if protocol else message)
        self.protocol = protocol


class DecodeError(ProtocolViolation):
    """Bytes that are no message of the kind expected."""


class FrameTooLarge(DecodeError):
    """A length prefix above the limit of its protocol. `size` and `limit` are bytes."""

    def __init__(self, size: int, limit: int, *, protocol: str = "") -> None:
        super().__init__(f"frame of {size} bytes, at most {limit} allowed", protocol=protocol)
        self.size = size
        self.limit = limit


class AuthenticationFailed(ProtocolViolation):
    """A signature, tag or certificate does not verify."""


class PeerMismatch(AuthenticationFailed):
    """The peer that answered is not the one that was dialled."""

    def __init__(self, expected: object, actual: object) -> None:
        super().__init__(f"expected peer {expected}, but {actual} answered")
        self.expected = expected
        self.actual = actual


class NetworkError(FlareError, OSError):
    """The world's fault: it may work later or elsewhere."""


class DialFailed(NetworkError):
    """Every address failed. `attempts` pairs each address with its error."""

    def __init__(self, target: object, attempts: Sequence[tuple[object, BaseException]] = ()) -> None:
        tried = "; ".join(_attempt(target, addr, error) for addr, error in attempts)
        super().__init__(f"could not dial {target}: {tried or 'no address to dial'}")
        self.target = target
        self.attempts = tuple(attempts)


def _attempt(target: object, addr: object, error: BaseException) -> str:
    """How one address did, which is named once."""
    where = str(addr)
    words = str(error) or type(error).__name__
    words = words.removeprefix(f"{where.partition('/p2p/')[0]}: ")
    return words if where == str(target) else f"{where}: {words}"


class ConnectionClosed(NetworkError):
    """The connection is gone."""


class StreamClosed(NetworkError):
    """The stream ended before what was asked for."""


class StreamReset(NetworkError):
    """The stream was reset, by the peer or here."""


class ProtocolNotSupported(NetworkError):
    """The peer speaks none of the protocols asked for. `protocols` lists them."""

    def __init__(self, protocols: Sequence[str], peer: object = None) -> None:
        who = f"peer {peer}" if peer is not None else "the peer"
        super().__init__(f"{who} does not speak {' or '.join(protocols)}")
        self.protocols = tuple(protocols)


class LimitedConnection(NetworkError):
    """Not allowed over a relayed connection that has limits."""


class ResourceLimit(NetworkError):
    """One of our own limits refused it. `limit` is its name, where it has one in the configuration."""

    def __init__(self, message: str, *, limit: str = "") -> None:
        super().__init__(f"{limit}: {message}" if limit else message)
        self.limit = limit


class NoReservation(NetworkError):
    """No reservation is held on the relay."""


class TimedOut(FlareError, TimeoutError):
    """`what` took longer than `seconds`."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} took longer than {seconds:g} s")
        self.what = what
        self.seconds = seconds


class RelayRefused(FlareError):
    """A relay answered with a status other than OK. `status` is the wire code."""

    status = 0

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class ReservationRefused(RelayRefused):
    status = 200


class ResourceLimitExceeded(RelayRefused):
    status = 201


class PermissionDenied(RelayRefused):
    status = 202


class RelayConnectionFailed(RelayRefused):
    status = 203


class PeerHasNoReservation(RelayRefused):
    status = 204


class RelayedMessageMalformed(RelayRefused):
    status = 400


class RelayedMessageUnexpected(RelayRefused):
    status = 401


RELAY_STATUS: dict[int, type[RelayRefused]] = {
    cls.status: cls
    for cls in (
        ReservationRefused,
        ResourceLimitExceeded,
        PermissionDenied,
        RelayConnectionFailed,
        PeerHasNoReservation,
        RelayedMessageMalformed,
        RelayedMessageUnexpected,
    )
}


def relay_refused(status: int, doing: str) -> RelayRefused:
    """The error for a relay's wire `status` while `doing` something (circuit-v2.md, "Status codes")."""
    cls = RELAY_STATUS.get(status)
    if cls is None:
        return RelayRefused(f"{doing}: the relay answered with unknown status {status}", status=status)
    words = "".join(" " + c.lower() if c.isupper() else c for c in cls.__name__).strip()
    return cls(f"{doing}: the relay answered {status} ({words})")


class PortMappingRefused(FlareError):
    """Our router said no. `code` is its protocol's, 0 for none; it will say so for `lasting` seconds."""

    def __init__(self, message: str, *, code: int, lasting: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.lasting = lasting


class PunchFailed(FlareError):
    """No direct connection. `reason` is a sentence for people, `attempts` how many were made."""

    def __init__(self, reason: str, *, attempts: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.attempts = attempts
