"""A drawing of where CPU goes: shares from stacks, and an SVG that browsers read."""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree

from bench.serving.flame import ROW, WIDTH, drawing, sampled, tree

STACKS = Counter(
    {
        ("run", "loop", "app.api.advise", "pydantic.main.BaseModel.dump"): 30,
        ("run", "loop", "app.api.advise"): 20,
        ("run", "loop", "redis.<locals>.send<T>"): 49,
        ("run", "loop", "app.seldom"): 1,
        ("run",): 2,
    }
)
SVG = "{http://www.w3.org/2000/svg}"


def test_a_tree_begins_where_stacks_part_and_counts_what_passes_through() -> None:
    root = tree(STACKS)
    assert root.samples == 100
    assert {name: node.samples for name, node in root.below.items()} == {
        "app.api.advise": 50,
        "redis.<locals>.send<T>": 49,
        "app.seldom": 1,
    }


def test_every_box_is_as_wide_as_its_share_and_below_its_caller() -> None:
    drawn = ElementTree.fromstring(drawing(tree(STACKS), "a & b"))
    boxes = {}
    for group in drawn.iter(f"{SVG}g"):
        rect, title = group.find(f"{SVG}rect"), group.find(f"{SVG}title")
        assert rect is not None
        assert title is not None
        boxes[str(title.text)] = {name: float(rect.attrib[name]) for name in ("x", "y", "width")}
    advise = boxes["app.api.advise: 50.0 %"]
    assert advise == {"x": 0.0, "y": ROW, "width": WIDTH / 2}
    assert boxes["pydantic.main.BaseModel.dump: 30.0 %"] == {
        "x": 0.0,
        "y": 2 * ROW,
        "width": 0.3 * WIDTH,
    }
    assert boxes["redis.<locals>.send<T>: 49.0 %"]["x"] == 0.51 * WIDTH
    assert boxes["app.seldom: 1.0 %"]["x"] == 0.5 * WIDTH


def test_stacks_are_those_of_who_takes_the_cpu() -> None:
    stacks: Counter[tuple[str, ...]] = Counter()
    with sampled(stacks):
        while sum(stacks.values()) < 3:
            sum(range(1000))
    assert all(stack[-1].endswith("test_stacks_are_those_of_who_takes_the_cpu") for stack in stacks)
