"""A decorated function decides as it did before, whatever the advisor does."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from app.local.servers import free_port
from tests.service.api.http_faults import Faulty, faulty, hangs, ok

from shadow_advisor_client import AdvisorClient, decision_id
from shadow_advisor_client.adapters.decorator import advised


@pytest.fixture
def server() -> Iterator[Faulty]:
    with faulty(ok) as server:
        yield server


def request_of(name: str, rsi: float = 50.0) -> Mapping[str, Any]:
    return {"request_id": name, "candidate": {"rsi": rsi}}


def action_of(result: str | None) -> Mapping[str, Any]:
    return {"decision": result is not None, "reason": result}


def sent(server: Faulty) -> list[tuple[str, Any]]:
    return [(path, body) for _, path, body, _ in server.requests]


def test_it_asks_decides_reports_and_gives_the_result_back(server: Faulty) -> None:
    with AdvisorClient(server.url) as client:

        @advised(client, request=request_of, action=action_of)
        def decide(name: str, rsi: float = 50.0) -> str | None:
            """Decide."""
            return None if rsi > 70 else f"order of {name}"

        assert decide("a") == "order of a"
        first = decide.decision_id
        assert decide("b", rsi=80.0) is None
        assert (first, decide.decision_id) == (
            str(decision_id("a", "agent")),
            str(decision_id("b", "agent")),
        )
        assert (vars(decide)["__name__"], decide.__doc__) == ("decide", "Decide.")
        client.close(20)
        assert decide.advice == {"decision_id": "d", "status": "advised", "approve": True}
    assert ("/advise", {"request_id": "b", "candidate": {"rsi": 80.0}}) in sent(server)
    assert (f"/decisions/{first}/agent-action", {"decision": True, "reason": "order of a"}) in sent(
        server
    )


def test_an_error_of_the_function_is_its_callers_and_nothing_is_reported(server: Faulty) -> None:
    with AdvisorClient(server.url) as client:

        @advised(client, request=request_of)
        def decide(name: str) -> None:
            raise KeyError(name)

        with pytest.raises(KeyError, match="a"):
            decide("a")
        client.close(20)
    assert [path for path, _ in sent(server)] == ["/advise"]


def test_faults_of_the_mapping_stop_nothing_and_are_counted(server: Faulty) -> None:
    def broken(*_: object) -> Mapping[str, Any]:
        raise ZeroDivisionError

    with AdvisorClient(server.url) as client:
        asks = advised(client, request=broken)(lambda name: name)
        reports = advised(client, request=request_of, action=broken)(lambda name: name)
        assert (asks("a"), asks.decision_id, asks.advice) == ("a", None, None)
        assert reports("b") == "b"
        client.close(20)
        assert client.stats().dropped == {"mapping": 2}


def test_an_advisor_that_is_away_changes_nothing() -> None:
    with AdvisorClient(f"http://127.0.0.1:{free_port()}") as client:
        decide = advised(client, request=request_of, deadline_s=0.05)(lambda name: name)
        assert decide("a") == "a"
        client.close(0)


def test_what_was_waited_for_in_vain_is_reported_on_all_the_same() -> None:
    with faulty(hangs, ok) as server, AdvisorClient(server.url) as client:
        decide = advised(client, request=request_of, deadline_s=0.05)(lambda name: name)
        assert (decide("a"), decide.advice) == ("a", None)
        server.released.set()
        client.close(20)
    action = f"/decisions/{decision_id('a', 'agent')}/agent-action"
    assert sent(server)[-1] == (action, {"decision": True})


def test_the_advice_can_be_waited_for(server: Faulty) -> None:
    with AdvisorClient(server.url) as client:

        @advised(client, request=request_of, deadline_s=20.0)
        def decide(name: str) -> bool:
            assert decide.advice is not None
            return bool(decide.advice["approve"])

        assert decide("a") is True


def test_a_method_and_threads_each_know_their_own_decision(server: Faulty) -> None:
    with AdvisorClient(server.url) as client:

        class Agent:
            @advised(client, request=lambda agent, name: request_of(name))
            def decide(self, name: str) -> str | None:
                return name

        agent = Agent()

        def known(name: str) -> str | None:
            assert agent.decide(name) == name
            known: str | None = agent.decide.decision_id
            assert known == Agent.decide.decision_id
            return known

        with ThreadPoolExecutor(4) as pool:
            names = [str(number) for number in range(20)]
            assert list(pool.map(known, names)) == [
                str(decision_id(name, "agent")) for name in names
            ]


def test_a_function_that_yields_cannot_be_decorated(server: Faulty) -> None:
    with AdvisorClient(server.url) as client:

        def orders(name: str) -> Iterator[str]:
            yield name

        async def orders_later(name: str) -> AsyncIterator[str]:
            yield name

        for decide in (orders, orders_later, partial(orders, "a")):
            with pytest.raises(TypeError, match="yields: it decides nothing when it is called"):
                advised(client, request=request_of)(decide)


def test_a_generator_is_nobodys_decision_and_comes_back_unread(server: Faulty) -> None:
    with AdvisorClient(server.url) as client:
        decide = advised(client, request=request_of)(lambda name: (each for each in name))
        assert list(decide("ab")) == ["a", "b"]
        client.close(20)
        assert client.stats().dropped == {"mapping": 1}
    assert [path for path, _ in sent(server)] == ["/advise"]


async def test_a_coroutine_function_is_reported_when_it_has_decided(server: Faulty) -> None:
    with AdvisorClient(server.url) as client:

        @advised(client, request=request_of)
        async def decide(name: str) -> bool:
            return False

        assert await decide("a") is False
        client.close(20)
    assert sent(server)[-1] == (
        f"/decisions/{decision_id('a', 'agent')}/agent-action",
        {"decision": False},
    )


def test_schedulers_know_a_coroutine_function_and_what_decides_nothing_is_refused(
    server: Faulty,
) -> None:
    with AdvisorClient(server.url) as client:

        @advised(client, request=lambda: {})
        async def decide() -> None: ...

        assert asyncio.iscoroutinefunction(decide)
        if sys.version_info >= (3, 12):
            assert inspect.iscoroutinefunction(decide)
        odd_ones: tuple[Any, ...] = (classmethod(lambda kind: None), dict)
        for odd in odd_ones:
            with pytest.raises(TypeError, match="no function that decides"):
                advised(client, request=lambda: {})(odd)
