"""A link that closes while the peer is still sending."""

from __future__ import annotations

from flare._core.engine import Engine
from flare._core.link import NoiseRecords


def test_the_rest_of_a_record_that_comes_after_close_is_no_violation() -> None:
    engine = Engine()
    near = engine.attach_memory(record=NoiseRecords(bytes(32), bytes(range(32))), initiator=True)
    far = engine.attach_memory(record=NoiseRecords(bytes(range(32)), bytes(32)), initiator=False)
    ended: list[BaseException | None] = []
    far.on_close = ended.append
    stream = near.open_stream()
    stream.write(b"hello")
    record = near.take_output()
    far.feed(record[:10])
    far.close()
    far.feed(record[10:])
    while far.take_output():
        engine.run_pass()
    engine.run_pass()
    assert ended == [None]
    engine.close()
