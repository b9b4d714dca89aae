"""The addresses of ADVISOR_NOTICES: who is told, and how one is given a notice."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import NamedTuple
from urllib.parse import unquote

from app.domain.errors import AdvisorError
from app.settings import Settings, SettingsError

LONGEST_REASON = 200
FILE = "file:"
"""An address that begins like this is a file, which gets a line of JSON a notice."""


class Notice(NamedTuple):
    """One thing that people are told."""

    title: str
    body: str
    level: str = "info"
    """`info`, `warning` or `failure`: how it is coloured where there are colours."""


class NotTaken(AdvisorError):
    """An address did not take a notice: why, without saying what the address is."""


Takes = Callable[[Notice], None]
"""An address: takes a notice, or raises, best `NotTaken`."""


def addresses_of(settings: Settings) -> dict[str, Takes]:
    """Every address of the settings, by its place and kind. Raises `SettingsError`."""
    written = settings.notices.split()
    if not written:
        raise SettingsError(
            "ADVISOR_NOTICES names no address; separate them by spaces, such as"
            " tgram://TOKEN/CHAT slack://TOKEN json://host/path file:/path/of/notices.jsonl"
        )
    return {
        f"address {number} ({address.partition(':')[0][:20]})": _address(number, address)
        for number, address in enumerate(written, 1)
    }


def _address(number: int, address: str) -> Takes:
    if address == FILE:
        raise SettingsError(f"ADVISOR_NOTICES: `{FILE}` names no file; write {FILE}/path/of/it")
    if address.startswith(FILE):
        return partial(_append, Path(address.removeprefix(FILE)))
    return _by_apprise(number, address)


def _append(path: Path, notice: Notice) -> None:
    """A line of JSON more, which is on disk when this returns."""
    line = {"time": datetime.now(UTC).isoformat(), **notice._asdict()}
    try:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise NotTaken(error.strerror or type(error).__name__) from error


def _by_apprise(number: int, address: str) -> Takes:
    try:
        from apprise import Apprise, NotifyType
    except ImportError as error:
        raise SettingsError(
            "notices need apprise: pip install 'shadow-advisor[notices]'"
        ) from error
    service = Apprise.instantiate(address)
    if service is None:
        raise SettingsError(f"ADVISOR_NOTICES: apprise cannot read address {number}")

    def take(notice: Notice) -> None:
        with _warnings() as told:
            took = service.notify(
                title=notice.title, body=notice.body, notify_type=NotifyType(notice.level)
            )
        if not took:
            raise NotTaken(_without(address, " ".join(told)) or "it says no")

    return take


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What apprise warns of in this thread: it logs why, and returns only that it failed."""
    told: list[str] = []
    here = get_ident()

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == here:
                told.append(record.getMessage())

    kept, logger = Kept(logging.WARNING), logging.getLogger("apprise")
    logger.addHandler(kept)
    try:
        yield told
    finally:
        logger.removeHandler(kept)


def _without(address: str, text: str) -> str:
    """A text in which nothing of an address stands: it holds tokens."""
    parts = [part for part in re.split(r"[/:@?&=]+", address.partition(":")[2]) if len(part) > 2]
    for part in sorted({*parts, *map(unquote, parts)}, key=len, reverse=True):
        text = text.replace(part, "...")
    return text[:LONGEST_REASON]
