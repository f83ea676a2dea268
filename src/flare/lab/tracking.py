"""How a router follows one TCP connection: Linux's connection tracking, without its window checks.

All transitions are in TRANSITIONS, by the state and by who sent the segment: `>` the side that opened the
entry, `<` the other one; `-` is invalid (the router does not translate it), `=` passes without a change.

A RST that is the first answer removes the entry at once: a refused SYN closes the hole that it made.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from flare.lab.packet import ACK, FIN, RST, SYN, Packet

TRANSITIONS = """
    state         > SYN   > SYN,ACK  > FIN  > ACK  > RST   < SYN   < SYN,ACK  < FIN  < ACK  < RST
    NEW            SS        -         -     ES      -       -        -         -      -      -
    SS  syn-sent   SS        -         -      -     CL      S2       SR         -      =     CL
    S2  both sent  S2       SR         -      -     CL      S2       SR         -      =     CL
    SR  answered    =       SR        FW     ES     CL       -        =        FW     SR     CL
    ES              =        -        FW     ES     CL       -        =        FW     ES     CL
    FW  fin-wait    =        -        LA     CW     CL       -        =        LA     CW     CL
    CW  close-wait  =        -        LA     CW     CL       -        =        LA     CW     CL
    LA  last-ack    =        -        LA     TW     CL       -        =        LA     TW     CL
    TW  time-wait  SS        -        TW     TW     CL      SS        =        TW     TW     CL
    CL  closed     SS        -        CL     CL     CL       -        =        CL     CL     CL
"""


class TcpState(enum.Enum):
    NEW = "NEW"
    SYN_SENT = "SS"
    BOTH_SENT = "S2"
    SYN_RECEIVED = "SR"
    ESTABLISHED = "ES"
    FIN_WAIT = "FW"
    CLOSE_WAIT = "CW"
    LAST_ACK = "LA"
    TIME_WAIT = "TW"
    CLOSED = "CL"


class Verdict(enum.Enum):
    """What a router does with a segment of a connection it knows."""

    FORWARD = "forward"
    INVALID = "invalid"  # not translated: treated as if no entry were there
    FORGET = "forget"  # forward, and remove the entry
    REOPEN = "reopen"  # remove the entry, then treat the segment as the first of a new one


@dataclass(frozen=True, slots=True)
class TcpTimeouts:
    """Seconds an entry lives after the last segment, by state; Linux's defaults."""

    syn_sent: float = 120.0
    syn_received: float = 60.0
    established: float = 432000.0
    fin_wait: float = 120.0
    close_wait: float = 60.0
    last_ack: float = 30.0
    time_wait: float = 120.0
    closed: float = 10.0


class RstPolicy(enum.Enum):
    """What a RST does to the entry."""

    TRACK = "track"  # as Linux: a refused SYN removes it, later ones leave it closed for a while
    KILL = "kill"  # any RST removes it and its mapping
    IGNORE = "ignore"  # forwarded, and the entry stays as it was


def _table() -> dict[tuple[TcpState, bool, int], TcpState | None]:
    """TRANSITIONS read by machine: (state, from the opener, column) -> next state, or None for `=`."""
    rows: dict[tuple[TcpState, bool, int], TcpState | None] = {}
    for line in TRANSITIONS.splitlines():
        words = line.split()
        if not words or words[0] not in _NAMES or len(words) < 11:
            continue
        for index, cell in enumerate(words[-10:]):
            if cell != "-":
                rows[_NAMES[words[0]], index < 5, index % 5] = None if cell == "=" else TcpState(cell)
    return rows


_NAMES = {state.value: state for state in TcpState}
_TABLE = _table()
_SYN, _SYN_ACK, _FIN, _ACK, _RST = range(5)


def _column(flags: int) -> int | None:
    if flags & RST:
        return _RST
    if flags & SYN:
        return _SYN_ACK if flags & ACK else _SYN
    if flags & FIN:
        return _FIN
    return _ACK if flags & ACK else None


@dataclass(slots=True)
class TcpTrack:
    """The state of one connection. `opener`: the side that opened the entry sent the segment."""

    timeouts: TcpTimeouts = field(default_factory=TcpTimeouts)
    rst: RstPolicy = RstPolicy.TRACK
    state: TcpState = TcpState.NEW
    replied: bool = False
    _fin_seen: bool = False
    _both_opened: bool = False
    _last: tuple[bool, int] | None = None
    _highest_ack: dict[bool, int] = field(default_factory=dict)

    def feed(self, packet: Packet, *, opener: bool) -> Verdict:
        """Account for a segment, and say what to do with it."""
        column = _column(packet.flags)
        if column is None or (self.state, opener, column) not in _TABLE:
            return Verdict.INVALID
        following = _TABLE[self.state, opener, column]
        if column == _RST:
            verdict = self._reset(packet, opener)
            if verdict is not None:
                return verdict
        if following is TcpState.SYN_SENT and self.state in (TcpState.TIME_WAIT, TcpState.CLOSED):
            if self._fin_seen or self._last == (opener, _RST):
                return Verdict.REOPEN
            following = None
        if self.state is TcpState.SYN_RECEIVED and self._both_opened and not opener and column == _ACK:
            following = TcpState.ESTABLISHED
        self._last = (opener, column)
        self.replied |= not opener
        if following is None:
            return Verdict.FORWARD
        self._both_opened |= following is TcpState.BOTH_SENT
        self._fin_seen |= column == _FIN
        if packet.flags & ACK:
            highest = self._highest_ack.get(opener)
            if highest is None or not _before(packet.ack, highest):
                self._highest_ack[opener] = packet.ack
        self.state = following
        return Verdict.FORWARD

    def _reset(self, packet: Packet, opener: bool) -> Verdict | None:
        """A RST's verdict, None when the table decides."""
        if self.rst is RstPolicy.IGNORE:
            return Verdict.FORWARD
        if self.rst is RstPolicy.KILL or not self.replied:
            return Verdict.FORGET
        acknowledged = self._highest_ack.get(not opener)
        if acknowledged is None or (packet.seq == 0 and self.state is not TcpState.ESTABLISHED):
            return None
        if _before(packet.seq, acknowledged):
            return Verdict.INVALID
        if self.state is TcpState.ESTABLISHED and packet.seq != acknowledged:
            return Verdict.FORWARD  # may be old: the ends settle it by challenge ACK
        return None

    @property
    def lifetime(self) -> float:
        """Seconds until the entry dies without another segment."""
        limits = self.timeouts
        return {
            TcpState.SYN_SENT: limits.syn_sent,
            TcpState.BOTH_SENT: limits.syn_sent,
            TcpState.SYN_RECEIVED: limits.syn_received,
            TcpState.ESTABLISHED: limits.established,
            TcpState.FIN_WAIT: limits.fin_wait,
            TcpState.CLOSE_WAIT: limits.close_wait,
            TcpState.LAST_ACK: limits.last_ack,
            TcpState.TIME_WAIT: limits.time_wait,
        }.get(self.state, limits.closed)


def _before(a: int, b: int) -> bool:
    return (a - b) & 0xFFFFFFFF > 0x7FFFFFFF
