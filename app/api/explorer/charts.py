"""Charts as data: options of ECharts, which a page carries as JSON and its script draws. Colours of
axes and texts are the script's, which knows whether it is dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Chart = dict[str, Any]
AGENT, ADVICE = "#8b6fd6", "#1f9d8a"
GOOD, BAD = "#1f9d8a", "#d1495b"


def running_r(days: Sequence[str], agent: Sequence[float], advice: Sequence[float]) -> Chart:
    """What both arms earned, summed over days, in R."""
    return {
        **_plain(days, "R, summed"),
        "legend": {"top": 0},
        "series": [
            {
                "name": name,
                "type": "line",
                "showSymbol": len(days) < 3,
                "data": _short(values),
                "lineStyle": {"width": 2},
                "color": colour,
            }
            for name, values, colour in (("agent", agent, AGENT), ("advice", advice, ADVICE))
        ],
    }


def agreement(days: Sequence[str], shares: Sequence[float | None]) -> Chart:
    """Agreement by day."""
    chart = _plain(days, "agreement")
    chart["yAxis"] |= {"min": 0, "max": 1}
    chart["series"] = [
        {
            "name": "agreement",
            "type": "line",
            "showSymbol": len(days) < 60,
            "symbolSize": 5,
            "data": _short(shares),
            "color": ADVICE,
        }
    ]
    return chart


def saved(codes: Sequence[str], values: Sequence[float | None]) -> Chart:
    """R that each veto saved (right of zero) or cost (left of it)."""
    return {
        "grid": {"left": 8, "right": 24, "top": 8, "bottom": 28, "containLabel": True},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {"type": "value", "name": "R saved", "nameLocation": "middle", "nameGap": 26},
        "yAxis": {"type": "category", "data": list(codes), "inverse": True},
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


def probabilities(labels: Sequence[str], by_version: Mapping[str, Sequence[float]]) -> Chart:
    """The probability that each version gives each action."""
    chart = _plain(labels, "probability")
    chart["xAxis"] |= {"axisLabel": {"interval": 0, "fontSize": 10}}
    return {
        **chart,
        "legend": {"top": 0, "show": len(by_version) > 1},
        "series": [
            {"name": version, "type": "bar", "barMaxWidth": 28, "data": _short(values)}
            for version, values in by_version.items()
        ],
    }


def levels(prices: Mapping[str, Mapping[str, float]]) -> Chart:
    """Prices of each arm's order: a column of marks per arm."""
    names = [name for name, levels in prices.items() if levels]
    colours = {"entry": "#4478c8", "stop": BAD}
    kinds = list(dict.fromkeys(kind for levels in prices.values() for kind in levels))
    return {
        "grid": {"left": 8, "right": 16, "top": 32, "bottom": 8, "containLabel": True},
        "tooltip": {"trigger": "item", "renderMode": "richText"},
        "legend": {"top": 0},
        "xAxis": {"type": "category", "data": names},
        "yAxis": {"type": "value", "scale": True, "name": "price"},
        "series": [
            {
                "name": kind,
                "type": "scatter",
                "symbol": "rect",
                "symbolSize": [72, 4],
                "color": colours.get(kind, GOOD),
                "data": [[name, prices[name][kind]] for name in names if kind in prices[name]],
            }
            for kind in kinds
        ],
    }


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
        "yAxis": {"type": "value", "name": what, "scale": True},
    }


def _short(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values]
