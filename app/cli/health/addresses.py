"""The addresses of ADVISOR_NOTICES: who is told, and how one is given a notice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from app.settings import Settings, SettingsError

FILE = "file:"
"""An address that begins like this is a file, which gets a line of JSON a notice."""


class Notice(NamedTuple):
    """One thing that people are told."""

    title: str
    body: str
    level: str = "info"
    """`info`, `warning` or `failure`: how it is coloured where there are colours."""


Takes = Callable[[Notice], bool]
"""An address: whether it took a notice."""


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


def _append(path: Path, notice: Notice) -> bool:
    """A line of JSON more, which is on disk when this returns."""
    line = {"time": datetime.now(UTC).isoformat(), **notice._asdict()}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return True


def _by_apprise(number: int, address: str) -> Takes:
    try:
        from apprise import Apprise, NotifyType
    except ImportError as error:
        raise SettingsError(
            "notices need apprise: pip install 'shadow-advisor[notices]'"
        ) from error
    service = Apprise()
    if not service.add(address):
        raise SettingsError(f"ADVISOR_NOTICES: apprise cannot read address {number}")

    def take(notice: Notice) -> bool:
        return bool(
            service.notify(
                title=notice.title, body=notice.body, notify_type=NotifyType(notice.level)
            )
        )

    return take
