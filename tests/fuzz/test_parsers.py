"""Random bytes where files and entries are read: each parser gives what was written, or its own
refusal. Model directories and manifests: tests/policy/test_model_fuzz.py.

ADVISOR_FUZZ_EXAMPLES makes so many of each (`make fuzz`).
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import InvalidRecord, LimitsError
from app.domain.record.event import Aside, Event
from app.domain.record.link import Linked
from app.domain.rules.case import TradingState
from app.domain.rules.limits import Limits, parse_limits, read_limits
from app.journal.segment import encode
from app.journal.spool import Spool
from app.journal.stream import entry_of, state_change
from app.shadow_log.proof.checkpoint import read_checkpoints
from app.shadow_log.proof.places import CheckpointError, place_at
from tests.builders import decision_event, state_event
from tests.service.journal.journal_events import event
from tests.service.running import ROOT
from tests.telemetry import Told

EXAMPLES = os.environ.get("ADVISOR_FUZZ_EXAMPLES")
quick = settings(max_examples=int(EXAMPLES or 60), derandomize=EXAMPLES is None)
Edit = tuple[float, int, bytes]
edits = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 40), st.binary(max_size=8)),
    max_size=5,
)
"""Where (as a share of the file), how many bytes go, and what comes in their place."""
LIMITS = (ROOT / "limits.toml").read_bytes()
EVENTS = [event(f"key-{number}", text="x" * number) for number in range(12)]


def damaged(content: bytes, changes: list[Edit]) -> bytes:
    for where, removed, added in changes:
        at = int(where * len(content))
        content = content[:at] + added + content[at + removed :]
    return content


async def reopened(directory: Path, telemetry: Told) -> list[Event]:
    """Every event that a spool finds."""
    spool = Spool(directory, 1 << 20, telemetry)
    await spool.open()
    events = [each for part in await spool.segments() for each in await spool.events(part)]
    await spool.aclose()
    return events


@quick
@given(changes=edits, rest=st.binary(max_size=60))
def test_a_damaged_spool_gives_every_whole_line_and_nothing_else(
    changes: list[Edit], rest: bytes
) -> None:
    content = damaged(b"".join(encode(each) for each in EVENTS), changes) + rest
    whole = [each for each in EVENTS if encode(each) in content.splitlines(keepends=True)]
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "00000000000000000001-aaaaaaaa.segment").write_bytes(content)
        read = asyncio.run(reopened(Path(work), Told()))
    assert [each for each in EVENTS if each in read] == read[: len(set(read))], "in order"
    assert set(whole) <= set(read) <= set(EVENTS)


@quick
@given(content=st.binary(max_size=400))
def test_a_spool_of_random_bytes_opens(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "00000000000000000001-aaaaaaaa.segment").write_bytes(content)
        assert asyncio.run(reopened(Path(work), Told())) == []


@quick
@given(changes=edits)
def test_a_damaged_limits_file_is_refused_or_read(changes: list[Edit]) -> None:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "limits.toml"
        path.write_bytes(damaged(LIMITS, changes))
        try:
            read = read_limits(path)
        except LimitsError:
            return
    assert Limits.model_validate(read.model_dump(mode="json")).hash() == read.hash()


@quick
@given(text=st.text(max_size=200))
def test_any_text_as_limits(text: str) -> None:
    try:
        limits = parse_limits(text, "here")
    except LimitsError:
        return
    assert Limits.model_validate(limits.model_dump(mode="json")) == limits


fields = st.dictionaries(
    st.sampled_from(
        b"kind key claim payload producer seq previous fate digest reason \xff".split()
    ),
    st.sampled_from(
        [b"decision", b"repeat", b"aside", b"event", b"accepted", b"1", b"-1", b"", b"\xff"]
    )
    | st.binary(max_size=12),
)


@quick
@given(fields=fields)
def test_any_entry_of_the_stream_is_an_event_or_refused(fields: dict[bytes, bytes]) -> None:
    try:
        entry = entry_of(fields)
    except InvalidRecord:
        return
    assert isinstance(entry, Event | Linked | Aside)


@quick
@given(changes=edits)
def test_a_damaged_decision_is_that_decision_or_refused(changes: list[Edit]) -> None:
    whole = decision_event("r-1")
    payload = damaged(whole.payload, changes)
    try:
        record = whole._replace(payload=payload).record()
    except InvalidRecord:
        return
    assert Event.of_decision(record).key  # type: ignore[arg-type]


@quick
@given(changes=edits, rest=st.binary(max_size=20))
def test_a_damaged_state_is_a_state_or_refused(changes: list[Edit], rest: bytes) -> None:
    try:
        change = state_change(damaged(state_event().payload, changes) + rest)
    except InvalidRecord:
        return
    assert change.state in TradingState


@quick
@given(content=st.binary(max_size=300) | st.just(b'{"root":"","signature":"","size":0}\n'))
def test_a_file_of_random_bytes_holds_no_checkpoint(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "checkpoints"
        path.write_bytes(content)
        with suppress(CheckpointError):
            assert read_checkpoints(place_at(str(path)))[0] == []
