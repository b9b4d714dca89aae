"""Charts as data: options of ECharts, which a page carries as JSON and its script draws. Colours of
axes and texts are the script's, which knows whether it is dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from math import ceil, floor, log10
from typing import Any, NamedTuple

from app.domain.intervals import Mean
from app.shadow_log.bar_files import Candle

Chart = dict[str, Any]
AGENT, ADVICE = "#8b6fd6", "#1f9d8a"
GOOD, BAD, WATCH = "#1f9d8a", "#d1495b", "#d99a2b"
QUIET = "#8b93a5"
LEGEND = {"top": 0, "right": 0}
"""Beside the name of the axis, which stands at the left."""
_RISE_AND_FALL = {"color": GOOD, "borderColor": GOOD, "color0": BAD, "borderColor0": BAD}


FAR = timedelta(days=31)
"""A line of shares does not cross a longer time without decisions."""
MOST_STEPS = 6
"""Between the ends of an axis of prices."""
PLOT_PX, LABEL_PX = 330, 14
"""Height of the candles' plot in a tall figure (`.chart.tall`), and of a label beside it."""


class Level(NamedTuple):
    """A price of an arm's order."""

    arm: str
    kind: str
    price: float


class Exit(NamedTuple):
    """How an arm's trade ended, and at what price, where that was told."""

    arm: str
    when: datetime
    price: float | None
    outcome: str


def running_r(days: Sequence[str], agent: Sequence[float], advice: Sequence[float]) -> Chart:
    """What both arms earned, summed over days, in R."""
    return {
        **_timed("R, summed"),
        "legend": dict(LEGEND),
        "series": [
            {
                "name": name,
                "type": "line",
                "showSymbol": len(days) < 3,
                "step": "end",
                "data": _dated(days, values),
                "lineStyle": {"width": 2},
                "color": colour,
            }
            for name, values, colour in (("agent", agent, AGENT), ("advice", advice, ADVICE))
        ],
    }


def difference(days: Sequence[str], means: Sequence[Mean | None]) -> Chart:
    """R a decision, advice less agent, over all days so far, with the band of its interval: the
    band is stacked on its lower end."""
    chart = _timed("R a decision")
    lows = [mean and mean.low for mean in means]
    highs = [mean and mean.high for mean in means]
    wide = [
        None if low is None or high is None else high - low
        for low, high in zip(lows, highs, strict=True)
    ]
    band = {
        "type": "line",
        "stack": "band",
        "stackStrategy": "all",
        "step": "end",
        "showSymbol": False,
        "silent": True,
        "lineStyle": {"opacity": 0},
        "color": ADVICE,
    }
    chart["series"] = [
        {**band, "name": "lower end", "data": _dated(days, lows)},
        {
            **band,
            "name": "band of 95 %",
            "data": _dated(days, wide),
            "areaStyle": {"opacity": 0.2},
        },
        {
            "name": "advice less agent",
            "type": "line",
            "showSymbol": len(days) < 3,
            "step": "end",
            "data": _dated(days, [mean and mean.value for mean in means]),
            "lineStyle": {"width": 2},
            "color": ADVICE,
            "markLine": {
                "symbol": "none",
                "silent": True,
                "label": {"show": False},
                "lineStyle": {"color": QUIET, "type": "dashed"},
                "data": [{"yAxis": 0}],
            },
        },
    ]
    return chart


def agreement(days: Sequence[str], shares: Sequence[float | None]) -> Chart:
    """Agreement by day."""
    chart = _timed("agreement")
    chart["yAxis"] |= {"min": 0, "max": 1}
    chart["series"] = [
        {
            "name": "agreement",
            "type": "line",
            "showSymbol": len(days) < 60,
            "symbolSize": 5,
            "data": _broken(days, shares),
            "color": ADVICE,
        }
    ]
    return chart


def calibration(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """What was told beside what came, by fifth of the scale; on the line they are the same."""
    kinds = sorted({row["what"] for row in rows})
    return {
        "grid": {"left": 8, "right": 16, "top": 36, "bottom": 28, "containLabel": True},
        "tooltip": {"trigger": "item", "renderMode": "richText"},
        "legend": dict(LEGEND),
        "xAxis": _share("chance that was told"),
        "yAxis": {**_share("won"), "nameLocation": "end"},
        "series": [
            {
                "name": {"win": "chance of a profit", "approve": "chance of approving"}[kind],
                "type": "line",
                "symbolSize": 8,
                "color": ADVICE if kind == "win" else AGENT,
                "data": [
                    [round(row["told"], 4), round(row["won"], 4)]
                    for row in rows
                    if row["what"] == kind
                ],
                "markLine": {
                    "symbol": "none",
                    "silent": True,
                    "lineStyle": {"color": QUIET, "type": "dashed"},
                    "data": [[{"coord": [0, 0]}, {"coord": [1, 1]}]],
                },
            }
            for kind in kinds
        ],
    }


def _share(name: str) -> Chart:
    return {
        "type": "value",
        "min": 0,
        "max": 1,
        "name": name,
        "nameLocation": "middle",
        "nameGap": 26,
    }


def behaviour(weeks: Sequence[str], shares: Mapping[str, Sequence[float | None]]) -> Chart:
    """Shares of decisions, by week."""
    chart = _timed("share")
    chart["yAxis"] |= {"min": 0, "max": 1}
    chart["legend"] = dict(LEGEND)
    chart["grid"] |= {"top": 76}
    colours = ("#4478c8", AGENT, ADVICE, QUIET)
    chart["series"] = [
        {
            "name": name,
            "type": "line",
            "showSymbol": len(weeks) < 60,
            "data": _broken(weeks, values),
            "color": colour,
        }
        for (name, values), colour in zip(shares.items(), colours, strict=False)
    ]
    return chart


class Moved(NamedTuple):
    """How far a distribution moved, and whether that is more than chance."""

    name: str
    psi: float
    significant: bool


def shifts(moved: Sequence[Moved], watch: float, refresh: float) -> Chart:
    """How far distributions moved, with the thresholds; what counts and lies beyond one stands
    out. Bars end at four times the threshold that asks for more, so that it can be seen."""
    label = {"color": QUIET, "textBorderWidth": 0, "position": "start"}
    lines = [
        {"xAxis": at, "label": {**label, "formatter": word, "align": side}}
        for at, word, side in ((watch, "watch", "right"), (refresh, "refresh", "left"))
    ]
    return {
        "grid": {"left": 8, "right": 24, "top": 24, "bottom": 28, "containLabel": True},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {
            "type": "value",
            "name": "PSI",
            "nameLocation": "middle",
            "nameGap": 26,
            "max": round(1.05 * min(max([refresh, *(each.psi for each in moved)]), 4 * refresh), 2),
        },
        "yAxis": {
            "type": "category",
            "data": [each.name for each in moved],
            "inverse": True,
            "axisLabel": {"interval": 0, "fontSize": 10},
        },
        "series": [
            {
                "name": "PSI",
                "type": "bar",
                "barMaxWidth": 14,
                "data": [
                    {
                        "value": round(each.psi, 4),
                        "itemStyle": {"color": _of_threshold(each, watch, refresh)},
                    }
                    for each in moved
                ],
                "markLine": {
                    "symbol": "none",
                    "silent": True,
                    "lineStyle": {"color": QUIET, "type": "dashed"},
                    "data": lines,
                },
            }
        ],
    }


def _of_threshold(moved: Moved, watch: float, refresh: float) -> str:
    if not moved.significant or moved.psi < watch:
        return QUIET
    return BAD if moved.psi >= refresh else WATCH


def saved(codes: Sequence[str], values: Sequence[float | None]) -> Chart:
    """R that each veto saved (right of zero) or cost (left of it)."""
    return {
        "grid": {"left": 8, "right": 24, "top": 8, "bottom": 28, "containLabel": True},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {"type": "value", "name": "R saved", "nameLocation": "middle", "nameGap": 26},
        "yAxis": {
            "type": "category",
            "data": list(codes),
            "inverse": True,
            "axisLabel": {"interval": 0},
        },
        "series": [
            {
                "name": "R saved",
                "type": "bar",
                "barMaxWidth": 18,
                "data": [
                    {"value": value, "itemStyle": {"color": GOOD if (value or 0) >= 0 else BAD}}
                    for value in _short(values)
                ],
            }
        ],
    }


def gains(arms: Mapping[str, Mapping[str, Any]]) -> Chart:
    """R a decision that other limits bring each arm, with its interval."""
    told = {name: arm["gain_r_a_decision"] for name, arm in arms.items()}
    known = {name: gain for name, gain in told.items() if gain is not None}
    names = list(known)
    bands = [
        {"coord": [gain[end], i]}
        for i, gain in enumerate(known.values())
        for end in ("low", "high")
        if gain["low"] is not None
    ]
    ends = [1.1 * band["coord"][0] for band in bands]
    ends += [1.1 * gain["value"] for gain in known.values()]
    return {
        "grid": {"left": 8, "right": 24, "top": 8, "bottom": 28, "containLabel": True},
        "tooltip": {"trigger": "item", "renderMode": "richText"},
        "xAxis": {
            "type": "value",
            "name": "R a decision",
            "nameLocation": "middle",
            "nameGap": 26,
            "min": round(min([0.0, *ends]), 3),
            "max": round(max([0.0, *ends]), 3),
        },
        "yAxis": {"type": "category", "data": names, "inverse": True},
        "series": [
            {
                "name": "gain",
                "type": "scatter",
                "symbolSize": 12,
                "color": ADVICE,
                "data": [[round(gain["value"], 5), name] for name, gain in known.items()],
                "markLine": {
                    "symbol": ["rect", "rect"],
                    "symbolSize": [2, 12],
                    "lineStyle": {"type": "solid", "width": 2, "color": ADVICE},
                    "label": {"show": False},
                    "data": [list(pair) for pair in zip(bands[::2], bands[1::2], strict=True)],
                },
            }
        ],
    }


def probabilities(labels: Sequence[str], by_version: Mapping[str, Sequence[float]]) -> Chart:
    """The probability that each version gives each action, a line each: names of actions have room
    on a phone."""
    return {
        "grid": {"left": 8, "right": 24, "top": 28, "bottom": 28, "containLabel": True},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "legend": {**LEGEND, "show": len(by_version) > 1},
        "xAxis": {**_share("probability"), "max": None},
        "yAxis": {
            "type": "category",
            "data": list(labels),
            "inverse": True,
            "axisLabel": {"interval": 0, "fontSize": 11},
        },
        "series": [
            {"name": version, "type": "bar", "barMaxWidth": 14, "data": _short(values)}
            for version, values in by_version.items()
        ],
    }


def candles(
    bars: Sequence[Candle],
    decided: datetime,
    prices: Mapping[str, Mapping[str, float]],
    exits: Sequence[Exit],
) -> Chart:
    """Bars with the moment of the decision, the levels of each arm's order, and their ends."""
    if not bars:
        return {}
    times = [_minute(bar.opened_at) for bar in bars]
    at = times[_bar_at(bars, decided)]
    label = {"formatter": "decided", "color": QUIET, "textBorderWidth": 0}
    lines: list[dict[str, Any]] = [
        {"xAxis": at, "label": label, "lineStyle": {"color": QUIET, "type": "dashed"}}
    ]
    levels = sorted(_levels(prices), key=lambda level: -level.price)
    drawn = [level.price for level in levels]
    axis = _price_axis(
        min([*drawn, *(bar.low for bar in bars)]), max([*drawn, *(bar.high for bar in bars)])
    )
    moved = _apart(drawn, axis["min"], axis["max"])
    lines += [_drawn(level, by) for level, by in zip(levels, moved, strict=True)]
    return {
        "grid": {"left": 8, "right": 96, "top": 24, "bottom": 48, "containLabel": True},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "dataZoom": [{"type": "inside"}, {"type": "slider", "height": 18, "bottom": 8}],
        "xAxis": {
            "type": "category",
            "data": times,
            "axisLabel": {"alignMinLabel": "left", "alignMaxLabel": "right"},
        },
        "yAxis": axis,
        "series": [
            {
                "name": "price",
                "type": "candlestick",
                "data": [[bar.open, bar.close, bar.low, bar.high] for bar in bars],
                "itemStyle": _RISE_AND_FALL,
                "markLine": {"symbol": "none", "data": lines},
                "markPoint": {
                    "symbol": "pin",
                    "symbolSize": 34,
                    "data": _pins(bars, exits),
                    "label": {"show": False},
                },
            }
        ],
    }


def _price_axis(low: float, high: float) -> Chart:
    """An axis around these prices, whose ends and steps are numbers that people read."""
    span = max(high - low, 1e-6 * high, 1e-300)
    power = 10.0 ** floor(log10(span / MOST_STEPS))
    step = next(power * by for by in (1, 2, 5, 10) if span <= MOST_STEPS * power * by)
    digits = max(0, -floor(log10(step)))
    first = floor(low / step)
    last = max(ceil(high / step), first + 1)
    return {
        "type": "value",
        "min": round(first * step, digits),
        "max": round(last * step, digits),
        "interval": round(step, digits),
    }


def _apart(drawn: Sequence[float], low: float, high: float) -> list[float]:
    """Pixels that the label of each price, the highest first, is moved down (up below zero), so
    that none lies on another: down from the one above, then up from the lower end."""
    at = [PLOT_PX * (high - price) / (high - low) for price in drawn]
    placed = list(at)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + LABEL_PX)
    end = float(PLOT_PX)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], end)
        end = placed[i] - LABEL_PX
    return [round(label - line, 1) for label, line in zip(placed, at, strict=True)]


def _pins(bars: Sequence[Candle], exits: Sequence[Exit]) -> list[dict[str, Any]]:
    """Where trades ended, of those that end at a price within the bars."""
    return [
        {
            "name": f"{exit.arm}: {exit.outcome}",
            "coord": [_minute(bars[_bar_at(bars, exit.when)].opened_at), exit.price],
            "itemStyle": {"color": AGENT if exit.arm == "agent" else ADVICE},
        }
        for exit in exits
        if exit.price is not None and exit.when >= bars[0].opened_at
    ]


def _levels(prices: Mapping[str, Mapping[str, float]]) -> list[Level]:
    """What an advice has as the agent has it is drawn once."""
    agent = prices["agent"]
    return [
        Level(arm, kind, price)
        for arm, levels in prices.items()
        for kind, price in levels.items()
        if arm == "agent" or agent.get(kind) != price
    ]


def _drawn(level: Level, moved_px: float) -> dict[str, Any]:
    """A line, and its label, whose middle lies that much below it."""
    arm, kind, price = level
    colour = {"entry": "#4478c8", "stop": BAD}.get(kind, GOOD)
    words = kind if arm == "agent" else f"{kind}, advice"
    style = {"color": colour, "type": "solid" if arm == "agent" else "dashed"}
    label = {
        "formatter": words,
        "color": colour,
        "position": "end",
        "verticalAlign": "top",
        "lineHeight": LABEL_PX,
        "padding": [moved_px - LABEL_PX / 2, 0, 0, 0],
    }
    return {"yAxis": price, "name": f"{arm}: {kind}", "lineStyle": style, "label": label}


def _bar_at(bars: Sequence[Candle], moment: datetime) -> int:
    """The bar that a moment falls in; the nearest outside of all."""
    begun = sum(bar.opened_at <= moment for bar in bars)
    return max(begun - 1, 0)


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def matrix(versions: Sequence[str], shares: Mapping[tuple[str, str], float]) -> Chart:
    """Share of decisions in which two versions agree."""
    cells = [
        [i, j, round(share, 3)]
        for i, one in enumerate(versions)
        for j, other in enumerate(versions)
        if (share := shares.get((one, other))) is not None
    ]
    return {
        "grid": {"left": 8, "right": 8, "top": 8, "bottom": 56, "containLabel": True},
        "tooltip": {"renderMode": "richText"},
        "xAxis": {"type": "category", "data": list(versions)},
        "yAxis": {"type": "category", "data": list(versions)},
        "visualMap": {"min": 0, "max": 1, "orient": "horizontal", "left": "center", "bottom": 0},
        "series": [{"type": "heatmap", "data": cells, "label": {"show": True}}],
    }


def _plain(categories: Sequence[str], what: str) -> Chart:
    return {
        "grid": {"left": 8, "right": 16, "top": 36, "bottom": 8, "containLabel": True},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {"type": "category", "data": list(categories)},
        "yAxis": {
            "type": "value",
            "name": what,
            "nameTextStyle": {"align": "left"},
            "scale": True,
        },
    }


def _timed(what: str) -> Chart:
    """A chart along time: a year without decisions is as wide as any."""
    return {**_plain((), what), "xAxis": {"type": "time"}}


def _dated(days: Sequence[str], values: Sequence[float | None]) -> list[list[str | float | None]]:
    return [[day, value] for day, value in zip(days, _short(values), strict=True)]


def _broken(days: Sequence[str], values: Sequence[float | None]) -> list[list[str | float | None]]:
    """As `_dated`, of a line that ends where nothing follows within `FAR`, and begins anew."""
    points: list[list[str | float | None]] = []
    before = days[0] if days else ""
    for day, value in _dated(days, values):
        if date.fromisoformat(str(day)) - date.fromisoformat(before) > FAR:
            points.append([before, None])
        points.append([day, value])
        before = str(day)
    return points


def _short(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values]
