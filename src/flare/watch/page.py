"""The status page: one snapshot as HTML. What peers say of themselves is escaped; the page loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from flare.watch.snapshot import OpenCircuit, Refusal, Relay, Snapshot, Talker
from flare.watch.style import CSS, REFRESH, SCRIPT
from flare.watch.words import number, rate, share, short, size, span

SPARK: Final = (120, 32)  # of the curve's own coordinates: a second is a unit wide
NEARLY: Final = 0.9  # of a limit: the bar turns red


def render(snapshot: Snapshot, nonce: str) -> str:
    """The whole page. `nonce` is what the Content-Security-Policy lets its own style and script pass by."""
    relay = snapshot.relay
    what = "relay" if relay is not None else "host"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>flare {what} {escape(short(snapshot.peer))}</title>"
        f'<noscript><meta http-equiv="refresh" content="{REFRESH + 3}"></noscript>'
        f'<style nonce="{nonce}">{CSS}</style></head><body><div id="live">'
        f"{_header(snapshot, what)}<main>"
        f'<section class="tiles">{_traffic(snapshot)}{_books(relay)}{_process(snapshot)}</section>'
        f'<div class="columns"><div>{_talkers(relay)}</div>'
        f"<div>{_longest(relay)}{_refusals(relay)}{_addresses(snapshot)}</div></div>"
        '</main><footer><a href="/status.json">status.json</a><a href="/metrics">metrics</a>'
        f'<a href="/healthz">healthz</a><span>fresh every {REFRESH} s</span></footer></div>'
        f'<script nonce="{nonce}">{SCRIPT}</script></body></html>\n'
    )


def _header(snapshot: Snapshot, what: str) -> str:
    health = snapshot.health
    draining = snapshot.relay is not None and snapshot.relay.draining
    state = "healthy" if health.ok else "draining" if draining else "unhealthy"
    kind = "badge" if health.ok else "badge bad"
    alert = "".join(f'<p class="alert" role="status">{escape(reason)}</p>' for reason in health.reasons)
    return (
        f'<header><h1><b>flare</b> {what}</h1><span class="{kind}">{state}</span>'
        f'<span class="facts">{escape(snapshot.agent)} · up {span(snapshot.uptime)} · '
        f"{_plural(snapshot.connections, 'connection')}</span></header>"
        f'<p class="me mono">{escape(snapshot.peer)}</p>{alert}'
    )


def _traffic(snapshot: Snapshot) -> str:
    wire, relay = snapshot.wire, snapshot.relay
    carried = "" if relay is None else f" · circuits carried {size(relay.bytes)}"
    return (
        f'<div class="card broad"><h2>Sending now</h2><p class="big">{rate(wire.send_rate)} '
        f"<small>receiving {rate(wire.receive_rate)}</small></p>{_spark(wire.history)}"
        f'<p class="under">{size(wire.sent)} sent{carried}</p></div>'
    )


def _books(relay: Relay | None) -> str:
    if relay is None:
        return ""
    return _gauge(
        "Circuits", relay.circuits, relay.max_circuits, f"{number(relay.circuits_opened)} since start"
    ) + _gauge(
        "Reservations",
        relay.reservations,
        relay.max_reservations,
        f"{number(relay.reservations_opened)} since start, {number(relay.reservations_renewed)} renewals",
    )


def _gauge(title: str, value: int, limit: int | None, under: str) -> str:
    of = "no limit" if limit is None else f"of {number(limit)}"
    part = 0.0 if not limit else min(1.0, value / limit)
    full = " full" if part >= NEARLY else ""
    return (
        f'<div class="card"><h2>{title}</h2><p class="big">{number(value)} <small>{of}</small></p>'
        f'<svg class="bar{full}" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{part * 100:.1f}" height="6"/></svg><p class="under">{under}</p></div>'
    )


def _process(snapshot: Snapshot) -> str:
    process = snapshot.process
    rows = [
        ("CPU", f"{share(process.cpu_share)} of a core"),
        ("CPU time", span(process.cpu_seconds)),
        ("Memory", size(process.memory)),
        ("Loop lag", f"{process.lag * 1000:.0f} ms"),
    ]
    if process.descriptors is not None:
        rows.append(("Descriptors", number(process.descriptors)))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return f'<div class="card broad"><h2>Process</h2><dl class="split">{listed}</dl></div>'


def _spark(history: Sequence[float]) -> str:
    """The last two minutes, the newest at the right edge."""
    width, height = SPARK
    top = max(history, default=0.0) or 1.0
    first = width - len(history) + 1
    points = [
        f"{first + index},{height - 1 - value / top * (height - 3):.1f}"
        for index, value in enumerate(history)
    ]
    curve = ""
    if points:
        line = " ".join(points)
        curve = (
            f'<polygon class="area" points="{first},{height} {line} {width},{height}"/>'
            f'<polyline class="edge" points="{line}"/>'
        )
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="bytes sent per second, the last two minutes">'
        f'<line class="floor" x2="{width}" y1="{height}" y2="{height}"/>{curve}</svg>'
    )


def _talkers(relay: Relay | None) -> str:
    if relay is None:
        return ""
    head = (
        '<th>Peer</th><th>Circuits</th><th class="wide">Sent</th><th class="wide">Received</th><th>Now</th>'
    )
    return _table("Top talkers", head, map(_talker, relay.talkers), "Nobody has used a circuit yet.")


def _talker(talker: Talker) -> str:
    agent = f'<bdi class="agent">{escape(talker.agent)}</bdi>' if talker.agent else ""
    return (
        f'<td class="name">{_peer(talker.peer)}{agent}</td><td>{number(talker.circuits)}</td>'
        f'<td class="wide">{size(talker.sent)}</td><td class="wide">{size(talker.received)}</td>'
        f'<td class="now">{rate(talker.rate)}</td>'
    )


def _longest(relay: Relay | None) -> str:
    if relay is None:
        return ""
    head = '<th>From, to</th><th>Open for</th><th class="wide">Carried</th><th>Now</th>'
    return _table("Longest circuits", head, map(_circuit, relay.longest), "No circuit is open.")


def _circuit(circuit: OpenCircuit) -> str:
    return (
        f'<td class="name">{_peer(circuit.source)}<br>{_peer(circuit.target)}</td>'
        f'<td>{span(circuit.age)}</td><td class="wide">{size(circuit.bytes)}</td>'
        f'<td class="now">{rate(circuit.rate)}</td>'
    )


def _refusals(relay: Relay | None) -> str:
    if relay is None:
        return ""
    head = "<th>Request and reason</th><th>Times</th>"
    return _table("Refused", head, map(_refusal, relay.refusals), "Nothing was refused.")


def _refusal(refusal: Refusal) -> str:
    words = escape(f"{refusal.request}: {refusal.reason}")
    return f'<td class="wrap">{words}</td><td>{number(refusal.count)}</td>'


def _addresses(snapshot: Snapshot) -> str:
    suffix = f"/p2p/{snapshot.peer}"
    listed = "".join(f'<li class="mono">{escape(addr.removesuffix(suffix))}</li>' for addr in snapshot.addrs)
    listed = f"<ul>{listed}</ul>" if listed else '<p class="none">It listens nowhere.</p>'
    return f'<section class="card"><h2>Addresses</h2>{listed}</section>'


def _table(title: str, head: str, rows: Iterable[str], nothing: str) -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        if body
        else f'<p class="none">{nothing}</p>'
    )
    return f'<section class="card"><h2>{title}</h2>{table}</section>'


def _peer(peer: str) -> str:
    return f'<span class="peer" title="{escape(peer)}">{escape(short(peer))}</span>'


def _plural(count: int, what: str) -> str:
    return f"{number(count)} {what}{'' if count == 1 else 's'}"
