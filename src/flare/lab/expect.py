"""What must come out for each pair of NATs: physics, not flare's opinion of itself."""

from __future__ import annotations

# direct: a hole punch works. Ports that are given out in sequence are predicted, random ones over UDP are
# searched for (flare.nat.birthday: one run in 3,000 fails). relayed: the ports that matter cannot be known.
# either: two sequences may be predicted at once over TCP too, which is allowed and not demanded.
_TCP = """
               open     addr     port     seq      sym
    open       direct   direct   direct   direct   direct
    addr                direct   direct   direct   direct
    port                         direct   direct   relayed
    seq                                   either   relayed
    sym                                            relayed
"""
_UDP = """
               open     addr     port     seq      sym
    open       direct   direct   direct   direct   direct
    addr                direct   direct   direct   direct
    port                         direct   direct   direct
    seq                                   direct   relayed
    sym                                            relayed
"""
_CLASSES = {
    "none": "open",
    "full": "open",
    "addr": "addr",
    "port": "port",
    "port-rst": "port",
    "port-acc": "port",
    "noudp": "port",
    "hairpin": "open",
    "short": "port",
    "cgn": "port",
    "sym-seq": "seq",
    "sym": "sym",
    "adm": "sym",
    "cgn-sym": "sym",
}
OUTCOMES = {
    "direct": frozenset({"direct"}),
    "relayed": frozenset({"relayed"}),
    "either": frozenset({"direct", "relayed"}),
    "failed": frozenset({"failed"}),
}
_WITHOUT_UDP = ("noudp",)


def _parse(table: str) -> dict[frozenset[str], str]:
    header, *rows = (line.split() for line in table.strip().splitlines())
    cells: dict[frozenset[str], str] = {}
    for index, (name, *row) in enumerate(rows):
        for column, cell in zip(header[index:], row, strict=True):
            cells[frozenset({name, column})] = cell
    return cells


_TABLES = {"tcp": _parse(_TCP), "udp": _parse(_UDP)}


def expected(a: str, b: str, transport: str = "tcp") -> frozenset[str]:
    """The outcomes that are right for this pair of kinds, in either order."""
    if a in _WITHOUT_UDP or b in _WITHOUT_UDP:
        if transport == "quic":
            return OUTCOMES["failed"]
        transport = "tcp"
    table = _TABLES["tcp" if transport == "tcp" else "udp"]
    return OUTCOMES[table[frozenset({_CLASSES[a], _CLASSES[b]})]]
