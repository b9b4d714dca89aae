"""Ways to ask for a decision, side by side: all are asked the same, once each."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from app.domain.model.prompt import Prompt
from bench.serving.peers import Ask, action_of, compared


def said(content: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}}]}


async def test_peers_get_the_same_prompts_and_no_two_rounds_share_one() -> None:
    asked: dict[str, list[Prompt]] = {"one": [], "another": []}
    under_way, most = Counter[str](), Counter[str]()

    def peer(name: str) -> Ask:
        async def ask(prompt: Prompt) -> None:
            under_way[name] += 1
            most[name] = max(most[name], under_way[name])
            asked[name].append(prompt)
            await asyncio.sleep(0)
            under_way[name] -= 1

        return ask

    loads = await compared({name: peer(name) for name in asked}, (1, 4), 6)
    assert {key: len(load.latencies) for key, load in loads.items()} == {
        (name, clients): 6 for name in asked for clients in (1, 4)
    }
    assert asked["one"] == asked["another"]
    assert len(set(asked["one"])) == 2 + 6 + 6  # the first two warm up
    assert most == {"one": 4, "another": 4}
    assert not any(prompt.texts for prompt in asked["one"])


def test_a_chat_has_to_answer_with_a_label() -> None:
    assert action_of(said('{"action": "B"}')) == "B"
    for content in ('{"action": "Z"}', "{}", '"B"', "B"):
        with pytest.raises(ValueError, match=r"no decision|Expecting value"):
            action_of(said(content))
