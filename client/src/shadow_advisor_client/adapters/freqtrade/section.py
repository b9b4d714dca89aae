"""The section `shadow_advisor` of freqtrade's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

MODES = ("backtest", "dry_run", "live")
EXITS = ("strategy", "reported")
FLAGS = ("enabled", "follow")
NUMBERS = {
    "deadline_s": (0.01, 60.0),
    "backtest_wait_s": (0.0, 3600.0),
    "bars": (0, 4096),
    "exits_hours": (1.0, 720.0),
}
"""What each may be. The service follows no trade for longer, and takes no more candles."""


@dataclass(frozen=True)
class Section:
    """What a user may set; a key that is not here is an error.

    url : where the service answers.
    enabled : false: the strategy is as it would be without the mixin.
    token : who asks; by default found by the client.
    run_modes : in which of freqtrade's modes it is asked. A back-test asks only when it is named:
        its decisions would stand among those of the bot.
    follow : whether advice is waited for and followed: a refused entry is not made, and an approved
        one is made smaller where less is advised. Without an answer the bot does what it would.
    deadline_s : how long an entry waits for advice that it follows.
    backtest_wait_s : how long a back-test, which is not in a hurry, waits for each answer.
    bars : closed candles that are sent: 300 tell the service most of what candles tell.
    exits : `strategy`: the service follows orders by its stop loss, trailing stop and ROI table;
        `reported`: it does not, where exit signals or functions of its own decide.
    exits_hours : what is still open so long after entry counts as sold, where it follows them.
    """

    url: str = "http://127.0.0.1:8321"
    enabled: bool = True
    token: str | None = None
    run_modes: tuple[str, ...] = ("dry_run", "live")
    follow: bool = False
    deadline_s: float = 1.0
    backtest_wait_s: float = 60.0
    bars: int = 350
    exits: str = "strategy"
    exits_hours: float = 168.0


def read_section(config: Mapping[str, Any]) -> Section:
    """The section of a configuration. Raises `ValueError` for what it cannot say."""
    section = config.get("shadow_advisor")
    if not (section is None or isinstance(section, Mapping)):
        raise ValueError(f"shadow_advisor: {section!r} is no section of keys")
    given = dict(section or {})
    unknown = sorted(given.keys() - {field.name for field in fields(Section)})
    if unknown:
        raise ValueError(f"shadow_advisor has no {', '.join(unknown)}")
    modes = given.pop("run_modes", Section.run_modes)
    if isinstance(modes, str) or not modes:
        raise ValueError(f"shadow_advisor.run_modes: {modes!r} is no list of some of {MODES}")
    modes = tuple(modes)
    if wrong := sorted(set(modes) - set(MODES)):
        raise ValueError(f"shadow_advisor.run_modes: {', '.join(wrong)} is none of {MODES}")
    if given.get("exits", Section.exits) not in EXITS:
        raise ValueError(f"shadow_advisor.exits: {given['exits']!r} is none of {EXITS}")
    for key in FLAGS:
        if not isinstance(given.get(key, True), bool):
            raise ValueError(f"shadow_advisor.{key}: {given[key]!r} is neither true nor false")
    for key, (least, most) in NUMBERS.items():
        value = given.get(key, least)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"shadow_advisor.{key}: {value!r} is no number")
        if not least <= value <= most:
            raise ValueError(f"shadow_advisor.{key}: {value!r} is not from {least} to {most}")
    if not isinstance(given.get("bars", 0), int):
        raise ValueError(f"shadow_advisor.bars: {given['bars']!r} is no count of candles")
    return Section(run_modes=modes, **given)
