"""Ways to ask for a decision, side by side: all are asked the same, once each."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.model.actions import ACTIONS, LABELS
from app.domain.model.manifest import Calibration
from app.domain.scenario import Scenario
from app.policy.calibration import random_scenarios
from bench.serving.beside.servers import sessions_cpu_s, started
from bench.serving.beside.ways import (
    ANSWER,
    Answer,
    Ask,
    action_of,
    advised,
    asking,
    chatting,
    of_reading,
    written,
)
from bench.serving.load import Load
from bench.serving.peers import WARM_UP, Peer, Turn, compared, driven, figures, told
from bench.serving.service import Served
from tests import builders as build

SCENARIOS = random_scenarios(80, 4712)
A, B = Answer("A", "A"), Answer("B", "C")


def said(content: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}}]}


async def test_peers_get_the_same_scenarios_and_no_two_turns_share_one() -> None:
    asked: dict[str, list[Scenario]] = {"one": [], "another": []}
    under_way, most, order = Counter[str](), Counter[str](), []

    def peer(name: str) -> Peer:
        async def ask(scenario: Scenario) -> Answer:
            under_way[name] += 1
            most[name] = max(most[name], under_way[name])
            asked[name].append(scenario)
            order.append(name)
            await asyncio.sleep(0)
            under_way[name] -= 1
            return A

        return Peer(ask, lambda: float(len(order)))

    turns = await compared({n: peer(n) for n in asked}, iter(SCENARIOS), (1, 4), 2, 1)
    assert {key: [len(turn.answers) for turn in each] for key, each in turns.items()} == {
        (name, clients): [8, 8] for name in asked for clients in (1, 4)
    }
    assert asked["one"] == asked["another"]
    assert len({scenario.hash() for scenario in asked["one"]}) == WARM_UP + 4 * 8
    assert most == {"one": WARM_UP, "another": WARM_UP}
    firsts = [order[2 * WARM_UP + at] for at in range(0, 64, 16)]
    assert firsts == ["one", "another", "one", "another"], "turns begin with another each"
    assert all(turn.cpu_s == 8 for each in turns.values() for turn in each)


async def test_what_is_no_answer_counts_as_none() -> None:
    async def ask(scenario: Scenario) -> Answer:
        if scenario is SCENARIOS[1]:
            raise ValueError("no decision")
        return A

    turn = await driven(Peer(ask, lambda: 0.0), SCENARIOS[:3], 2)
    assert turn.answers == [A, None, A]
    assert len(turn.load.latencies) == 3


def test_figures_of_turns() -> None:
    exact = [Turn(Load([1.0, 1.0], 2.0), [A, B], 1.0), Turn(Load([1.0, 1.0], 2.0), [A, B], 1.0)]
    other = [
        Turn(Load([1.0, 2.0], 4.0), [A, Answer("B", "B")], 3.0),
        Turn(Load([1.0, 3.0], 2.0), [None, B], 5.0),
    ]
    found = figures(other, exact)
    assert (found.rate, found.slowest, found.fastest) == (0.5, 0.5, 0.5)
    assert (found.p50, found.p99, found.cpu_s) == (2.0, 3.0, 8 / 3)
    assert (found.valid, found.likeliest, found.decided) == (0.75, 1.0, pytest.approx(2 / 3))
    assert found.labels == 3
    assert told({("vLLM, /v1/systemone", 8): found})["vllm_v1_systemone_8_per_s"] == 0.5


def test_a_chat_has_to_answer_with_a_label() -> None:
    assert action_of(said('{"action": "B"}')) == "B"
    for content in ('{"action": "Z"}', "{}", '"B"', "B"):
        with pytest.raises(ValueError, match=r"no decision|Expecting value"):
            action_of(said(content))
    assert written("J") == Answer("J", "J")
    for label in ("K", "", "AB"):
        with pytest.raises(ValueError, match="no action"):
            written(label)


def test_the_likeliest_label_and_the_one_that_is_decided() -> None:
    favours = Calibration(bias=tuple(-0.1 if label == "A" else -3.0 for label in LABELS))
    scores = {"A": -0.2, "D": -2.0}
    reading = build.reading("A").model_copy(
        update={"log_probabilities": tuple(scores.get(label, -3.5) for label in LABELS)}
    )
    assert of_reading(reading, favours) == Answer("A", "D")


def answering(document: dict[str, Any], bodies: list[Any]) -> httpx.AsyncClient:
    async def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(httpx.Response(200, content=request.content).json())
        return httpx.Response(200, json=document)

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


async def test_every_way_asks_about_the_scenario_and_names_an_action() -> None:
    bodies: list[Any] = []
    chat = chatting(answering(said('{"action": "C"}'), bodies), "http://x")
    assert await chat(SCENARIOS[0]) == Answer("C", "C")
    assert bodies[0]["response_format"]["json_schema"]["schema"] == ANSWER

    choice = {"answers": {"action": {"choice": ACTIONS[2].name}}}
    ask: Ask = asking(answering(choice, bodies), "http://x")
    assert await ask(SCENARIOS[0]) == Answer("C", "C")
    assert len(bodies[1]["questions"]["action"]["criteria"]) == len(ACTIONS)

    calibration = Calibration(bias=tuple(-0.1 if label == "A" else -3.0 for label in LABELS))
    probabilities = [0.2 if label == "D" else 0.8 / 9 for label in LABELS]
    advice = {"probabilities": probabilities}
    served = Served("http://x", "token", os.getpid())
    advise = advised(answering(advice, bodies), served, calibration)
    assert await advise(SCENARIOS[0]) == Answer("A", "D")
    assert bodies[2]["candidate"] == SCENARIOS[0].as_json()["candidate"]
    abstained = advised(
        answering({"probabilities": None, "abstain_reason": "DEADLINE"}, bodies),
        served,
        calibration,
    )
    with pytest.raises(ValueError, match="DEADLINE"):
        await abstained(SCENARIOS[0])


SERVER = """
import http.server, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


def test_a_server_lives_as_long_as_it_is_needed(tmp_path: Path) -> None:
    from app.local.servers import free_port

    port = free_port()
    with started([sys.executable, "-c", SERVER, str(port)], port, tmp_path / "log") as running:
        assert httpx.get(running.url, trust_env=False).status_code == 200
        assert 0 < running.cpu_s() < 60
        assert sessions_cpu_s({running.session}) >= running.cpu_s() - 1
    with pytest.raises(ProcessLookupError):
        os.killpg(running.session, 0)
    broken = [sys.executable, "-c", "raise SystemExit('nothing to serve')"]
    with (
        pytest.raises(RuntimeError, match="nothing to serve"),
        started(broken, port, tmp_path / "log"),
    ):
        pass


def test_the_script_that_installs_peers_is_sound() -> None:
    script = Path(__file__).parents[3] / "bench/serving/beside/install.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
