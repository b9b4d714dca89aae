"""The bench of ingest gives writers what the service gives them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from app.domain.record.event import Entry
from app.journal.drain import StreamDrain
from app.shadow_log.appending.batch import Batch
from bench.record.ingest import EACH, fill
from bench.record.questions import events


async def test_events_are_numbered_so_that_a_writer_moves_two_batches_at_once(
    valkey_url: str,
) -> None:
    await fill(valkey_url, list(events(datetime.now(UTC), timedelta(seconds=1), 3)))
    moved: list[Entry] = []

    async def sink(entries: Sequence[Entry]) -> None:
        moved.extend(entries)

    drain = StreamDrain(valkey_url, sink)
    assert await drain.step() == 3 * EACH
    await drain.aclose()
    assert Batch.of(moved).all_linked
