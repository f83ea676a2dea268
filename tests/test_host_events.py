"""Events reach callbacks at once and iterators in order; who lags or fails costs nobody else anything."""

from __future__ import annotations

import asyncio
import logging

import pytest

from flare.events import AddressesChanged, ReservationLost, as_json, event_name
from flare.host_events import QUEUE, EventHub


def lost(number: int) -> ReservationLost:
    return ReservationLost(None, f"reason {number}", 0.5)


def test_names_and_json_are_flat_and_past_tense() -> None:
    assert event_name(lost(1)) == "reservation-lost"
    assert as_json(lost(1)) == {
        "event": "reservation-lost",
        "relay": None,
        "reason": "reason 1",
        "retry_in": 0.5,
    }
    assert as_json(AddressesChanged(())) == {"event": "addresses-changed", "addrs": []}


def test_iterators_get_everything_from_their_call_on_and_end_with_the_hub() -> None:
    async def main() -> list[str]:
        hub = EventHub()
        hub.emit(lost(0))
        events = hub.iterate()
        hub.emit(lost(1))
        hub.emit(lost(2))
        hub.close()
        return [event.reason async for event in events if isinstance(event, ReservationLost)]

    assert asyncio.run(main()) == ["reason 1", "reason 2"]


def test_an_iterator_of_a_closed_hub_ends_at_once() -> None:
    async def main() -> list[object]:
        hub = EventHub()
        hub.close()
        return [event async for event in hub.iterate()]

    assert asyncio.run(main()) == []


def test_a_callback_that_raises_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    hub = EventHub()
    seen: list[object] = []

    def bad(event: object) -> None:
        raise ZeroDivisionError

    hub.subscribe(bad)
    stop = hub.subscribe(seen.append)
    hub.emit(lost(1))
    stop()
    hub.emit(lost(2))
    assert seen == [lost(1)]
    assert "ReservationLost" in caplog.text


@pytest.mark.parametrize("extra", [0, 1])
def test_an_iterator_that_lags_loses_the_oldest_and_nothing_grows(
    extra: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> list[str]:
        hub = EventHub()
        events = hub.iterate()
        for number in range(QUEUE + extra):
            hub.emit(lost(number))
        hub.close()
        return [event.reason async for event in events if isinstance(event, ReservationLost)]

    with caplog.at_level(logging.WARNING):
        reasons = asyncio.run(main())
    assert reasons[0] == f"reason {extra}"
    assert len(reasons) == QUEUE
    assert ("dropped" in caplog.text) == bool(extra)
