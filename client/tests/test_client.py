"""The agent's client: it never blocks beyond its budget and never raises, whatever the service
does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest
from app.domain.canonical import decision_id
from app.local.servers import free_port
from tests.service.api.http_faults import (
    Behaviour,
    Faulty,
    Handler,
    dies_in_the_middle,
    faulty,
    garbage,
    hangs,
    ok,
    status,
)

from shadow_advisor_client import AdvisorClient, Breaker

FAST = {"first_backoff_s": 0.01, "max_backoff_s": 0.05, "breaker_pause_s": 0.05, "deadline_s": 5.0}


def paths(server: Faulty) -> list[str]:
    return [path for _, path, _, _ in server.requests]


def wait_until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    end = monotonic() + within_s
    while not condition():
        assert monotonic() < end
        threading.Event().wait(0.005)


def reports_get(behaviour: Behaviour) -> Behaviour:
    """Requests for advice are answered."""
    return lambda handler: (ok if handler.path == "/advise" else behaviour)(handler)


def client_of(url: str, **more: Any) -> AdvisorClient:
    return AdvisorClient(url, **{**FAST, **more})


def test_advice_comes_back_and_the_deadline_is_told_to_the_service() -> None:
    with faulty(ok) as server, client_of(server.url) as client:
        assert client.advise({"request_id": "r"}, deadline_s=3.0) == {
            "decision_id": "d",
            "status": "advised",
            "approve": True,
        }
        assert server.requests[0][3]["X-Deadline-Ms"] == "3000"
        assert client.stats().sent == 1


def test_submit_returns_the_id_that_the_service_will_use() -> None:
    with faulty(ok) as server, client_of(server.url) as client:
        known = client.submit({"request_id": "r-1"})
        assert known == str(decision_id("r-1"))
        client.close(10)
        assert client.result(known) == {"decision_id": "d", "status": "advised", "approve": True}


def test_a_request_without_an_id_gets_one_and_keeps_it_when_sent_again() -> None:
    with faulty(
        status(500), dies_in_the_middle, garbage, status(503, Retry_After="1"), ok
    ) as server:
        client = client_of(server.url)
        client.submit({"candidate": {}})
        server.wait_for(5)
        client.close(10)
        assert len({body["request_id"] for _, _, body, _ in server.requests}) == 1
        assert (client.stats().sent, client.stats().retried) == (1, 4)


def test_no_service_gives_none_and_the_request_stays_queued() -> None:
    with client_of(f"http://127.0.0.1:{free_port()}") as client:
        assert client.advise({"request_id": "r"}, deadline_s=0.05) is None
        stats = client.stats()
        assert (stats.timed_out, stats.queued, stats.sent) == (1, 1, 0)
        client.close(0.01)
        assert sum(client.stats().dropped.values()) <= 1


def test_a_hanging_service_costs_the_caller_its_deadline_and_no_more() -> None:
    with faulty(hangs) as server, client_of(server.url) as client:
        begin = monotonic()
        assert client.advise({"request_id": "r"}, deadline_s=0.1) is None
        assert monotonic() - begin < 5, "the server hangs for thirty seconds"
        server.released.set()
        client.close(0.01)


@pytest.mark.parametrize("code", [409, 422])
def test_a_refusal_is_final_and_its_reason_is_kept(code: int) -> None:
    with faulty(status(code)) as server, client_of(server.url) as client:
        assert client.advise({"request_id": "r"}) is None
        client.close(10)
        assert len(server.requests) == 1
        assert client.stats().dropped == {"refused": 1}
        assert f"says {code}" in str(client.stats().last_error)


def test_an_action_never_overtakes_its_request() -> None:
    with faulty(status(500), status(500), ok) as server, client_of(server.url) as client:
        for number in range(5):
            known = client.submit({"request_id": str(number)})
            client.report_action(known, {"decision": True})
            client.report_outcome(known, {"arm": "agent"})
        client.close(20)
        assert client.stats().sent == 15
        sent = paths(server)
        for number in range(5):
            place_of = f"/decisions/{decision_id(str(number))}"
            action, outcome = f"{place_of}/agent-action", f"{place_of}/outcome"
            asked = [
                place
                for place, (_, path, body, _) in enumerate(server.requests)
                if path == "/advise" and body["request_id"] == str(number)
            ]
            assert asked[-1] < sent.index(action) < sent.index(outcome)


def test_a_full_queue_drops_the_newest_and_counts_it() -> None:
    client = client_of(
        f"http://127.0.0.1:{free_port()}", queue_size=3, breaker_failures=1, breaker_pause_s=30
    )
    known = [client.submit({"request_id": str(number)}) for number in range(10)]
    assert known[0] is not None
    assert known[-1] is None
    assert client.report_action(known[-1], {"decision": True}) is False
    assert client.stats().dropped["queue_full"] >= 6
    client.close(0.01)


def test_the_breaker_opens_and_recovers() -> None:
    with faulty(status(500), status(500), ok) as server:
        client = client_of(server.url, breaker_failures=2)
        client.submit({"request_id": "r"})
        server.wait_for(2)
        server.wait_for(3)
        client.close(10)
        assert client.stats().breaker is Breaker.CLOSED
        assert client.stats().sent == 1


def test_an_open_breaker_is_visible() -> None:
    with faulty(status(500)) as server:
        client = client_of(server.url, breaker_failures=1, breaker_pause_s=60)
        client.submit({"request_id": "r"})
        server.wait_for(1)
        wait_until(lambda: client.stats().breaker is Breaker.OPEN)
        client.close(0.01)


class Hostile:
    """Breaks whoever looks at it."""

    @property
    def item(self) -> Any:
        raise RuntimeError("boom")

    def __str__(self) -> str:
        raise RuntimeError("boom")


def test_what_cannot_be_sent_is_dropped_and_counted() -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    with faulty(ok) as server, client_of(server.url) as client:
        for bad in (circle, None, {"x": ["y" * 20_000] * 100}):
            assert client.submit(bad) is None  # type: ignore[arg-type]
            assert client.advise(bad, deadline_s=1) is None  # type: ignore[arg-type]
            assert client.report_action("d", bad) is False  # type: ignore[arg-type]
        assert client.stats().dropped["unserialisable"] == 9
        assert server.requests == []


def test_a_value_that_cannot_be_sent_is_left_out_alone_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with faulty(ok) as server, client_of(server.url) as client:
        for number in range(3):
            request = {"request_id": str(number), "candidate": {"rsi": 50.0, "x": Hostile()}}
            assert client.submit(request) is not None
        client.close(20)
        assert [body["candidate"] for _, _, body, _ in server.requests] == 3 * [{"rsi": 50.0}]
        assert client.stats().left_out == {"candidate.x": 3}
    named = [text for text in caplog.messages if "candidate.x: RuntimeError: boom" in text]
    assert len(named) == 1


def test_a_closed_client_drops_and_counts_and_its_thread_ends() -> None:
    with faulty(ok) as server:
        client = client_of(server.url)
        client.submit({"request_id": "r"})
        client.close(10)
        assert client.submit({"request_id": "s"}) is None
        assert client.stats().dropped == {"closed": 1}
        assert not any(thread.name == "advisor-client" for thread in threading.enumerate())


async def test_asyncio_waits_without_stopping_its_loop() -> None:
    with faulty(ok) as server, client_of(server.url) as client:
        many = (client.aadvise({"request_id": str(number)}, 20.0) for number in range(3))
        assert [advice is not None for advice in await asyncio.gather(*many)] == 3 * [True]
        assert await client.aadvise(None) is None  # type: ignore[arg-type]
    with faulty(hangs) as server, client_of(server.url) as client:
        assert await client.aadvise({"request_id": "r"}, 0.05) is None
        assert client.stats().timed_out == 1
        server.released.set()
        client.close(0.01)


def test_what_somebody_waits_for_does_not_wait_behind_what_nobody_does() -> None:
    with faulty(hangs, ok) as server, client_of(server.url, deadline_s=60.0) as client:
        for number in range(400):
            client.submit({"request_id": str(number)})
        server.wait_for(1)
        assert client.advise({"request_id": "urgent"}) is not None, "the first one hangs still"
        assert client.stats().queued == 400
        server.released.set()
        client.close(60)
        sent = [body["request_id"] for _, _, body, _ in server.requests]
        assert sent[:2] == ["0", "urgent"]
        assert sorted(set(sent) - {"urgent"}, key=int) == [str(number) for number in range(400)]


def test_several_may_wait_at_the_same_time() -> None:
    with (
        faulty(hangs, hangs, ok) as server,
        client_of(server.url, deadline_s=60.0) as client,
        ThreadPoolExecutor() as pool,
    ):
        hanging = [pool.submit(client.advise, {"request_id": name}) for name in ("a", "b")]
        server.wait_for(2)
        assert client.advise({"request_id": "c"}) is not None
        server.released.set()
        assert [each.result() is not None for each in hanging] == [True, True]


def test_a_full_queue_leaves_places_for_what_somebody_waits_for() -> None:
    with faulty(hangs, ok) as server, client_of(server.url, queue_size=3) as client:
        for number in range(10):
            client.submit({"request_id": str(number)})
        assert client.stats().dropped == {"queue_full": 7}
        server.wait_for(1)  # The first one hangs.
        assert client.advise({"request_id": "urgent"}) is not None
        server.released.set()


def test_a_full_queue_of_reports_refuses_no_request() -> None:
    with faulty(reports_get(status(500))) as server, client_of(server.url, queue_size=3) as client:
        for number in range(10):
            client.report_action(f"d-{number}", {"decision": True})
        assert client.stats().dropped == {"queue_full": 7}
        assert client.advise({"request_id": "r"}) is not None
        assert client.submit({"request_id": "s"}) is not None
        client.close(0.01)


def test_reports_that_fail_stop_neither_requests_nor_reports_on_other_decisions() -> None:
    ill = str(decision_id("ill"))

    def behaves(handler: Handler) -> None:
        (status(500) if ill in handler.path else ok)(handler)

    with (
        faulty(behaves) as server,
        client_of(server.url, breaker_failures=2, breaker_pause_s=60) as client,
    ):
        client.submit({"request_id": "ill"})
        client.report_action(ill, {"decision": True})
        client.report_outcome(ill, {"arm": "agent"})
        server.wait_for(5)  # The request, and its report for the fourth time.
        for number in range(5):
            assert client.advise({"request_id": str(number)}) is not None
            client.report_action(str(decision_id(str(number))), {"decision": True})
        wait_until(lambda: client.stats().sent == 1 + 10)
        stats = client.stats()
        assert (stats.breaker, stats.reports_breaker) == (Breaker.CLOSED, Breaker.CLOSED)
        assert not any(path.endswith("/outcome") for path in paths(server)), "order is kept"
        client.close(0.01)


def test_a_request_that_always_fails_holds_no_other() -> None:
    def behaves(handler: Handler) -> None:
        (status(500) if handler.body["request_id"] == "ill" else ok)(handler)

    with faulty(behaves) as server, client_of(server.url) as client:
        client.submit({"request_id": "ill"})
        server.wait_for(2)
        known = [client.submit({"request_id": str(number)}) for number in range(5)]
        wait_until(lambda: all(client.result(str(each)) for each in known))
        client.close(0.01)


def test_reports_have_a_breaker_of_their_own_while_nobody_answers() -> None:
    with (
        faulty(reports_get(dies_in_the_middle)) as server,
        client_of(server.url, breaker_failures=2, breaker_pause_s=60) as client,
    ):
        for number in range(4):
            client.report_action(f"d-{number}", {"decision": True})
        wait_until(lambda: client.stats().reports_breaker is Breaker.OPEN)
        assert client.advise({"request_id": "r"}) is not None
        assert client.stats().breaker is Breaker.CLOSED
        assert len([path for path in paths(server) if path != "/advise"]) == 2
        client.close(0.01)


def test_a_refusal_names_its_fields_once_per_kind_and_takes_its_reports_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuses(handler: Handler) -> None:
        error = {"field": "candidate.rsi", "message": "must be a number", "verdict": "refused"}
        beside = {"field": "candidate.adx", "message": "too large", "verdict": "left_out"}
        handler.reply(422, json.dumps({"detail": "no", "errors": [error, beside]}).encode())

    with faulty(refuses, refuses, ok) as server, client_of(server.url) as client:
        for name in ("a", "b", "c"):
            known = client.submit({"request_id": name})
            client.report_action(known, {"decision": True})
            client.report_outcome(known, {"arm": "agent"})
        client.close(20)
        paths = [path for _, path, _, _ in server.requests]
        assert len(paths) == 3 + 2, "nothing is sent on what was refused"
        kind = "HTTP 422: candidate.rsi: must be a number"
        assert client.stats().refusals == {kind: 6}
        assert client.stats().dropped == {"refused": 6}
    assert sum(text.startswith("the service refuses") for text in caplog.messages) == 1


def test_faults_of_the_agents_own_mapping_are_caught_and_counted() -> None:
    row = {"rsi": 50.0}
    with faulty(ok) as server, client_of(server.url) as client:
        assert client.submit(lambda: {"request_id": "a", "candidate": row}) is not None
        assert client.submit(lambda: {"candidate": row["adx"]}) is None
        assert client.advise(lambda: {"candidate": row["adx"]}) is None
        assert client.report_action("d", lambda: {"decision": row["adx"]}) is False
        client.close(20)
        assert client.stats().dropped == {"mapping": 3}
        assert client.stats().last_error == "MappingError: KeyError: 'adx'"
        assert [body for _, _, body, _ in server.requests] == [
            {"request_id": "a", "candidate": row}
        ]


def page(handler: Handler) -> None:
    """What stands at another address: a page, and where the service may be."""
    body = b"<html>moved</html>"
    handler.send_response(302)
    handler.send_header("Location", "https://advisor.example/")
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def brackets(handler: Handler) -> None:
    """JSON that nothing reads to its end."""
    body = b"[" * 200_000
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (page, "HTTP 302: the answer is no JSON but text/html, and leads to https://advisor."),
        (brackets, "HTTP 200: the answer is no JSON but application/json"),
    ],
)
def test_what_answers_instead_of_the_service_is_told_and_costs_no_message(
    behaviour: Behaviour, says: str
) -> None:
    with faulty(behaviour) as server, client_of(server.url) as client:
        check = client.check({"candidate": {}})
        assert says in str(check)
        client.submit({"request_id": "a"})
        wait_until(lambda: client.stats().retried > 0)
        assert says in str(client.stats().last_error)
        assert client.stats().dropped == {}
        client.close(0)


@pytest.mark.parametrize("code", [200, 400, 403, 404, 405, 410, 421])
@pytest.mark.parametrize("body", [b"404 page not found", b"", b"{}", b'{"message": "no route"}'])
def test_a_gateway_that_answers_while_the_service_is_away_loses_nothing(
    code: int, body: bytes
) -> None:
    with (
        faulty(lambda handler: handler.reply(code, body), ok) as server,
        client_of(server.url) as client,
    ):
        known = client.submit({"request_id": "a"})
        client.report_action(known, {"decision": True})
        client.close(20)
        stats = client.stats()
    assert (stats.sent, stats.dropped) == (2, {})
    assert f"HTTP {code}" in str(stats.last_error)


def test_reports_on_a_request_that_found_no_room_count_with_it() -> None:
    def failing() -> dict[str, Any]:
        raise KeyError("x")

    with client_of(f"http://127.0.0.1:{free_port()}", queue_size=1) as client:
        assert client.submit({"request_id": "a"}) is not None
        for number in range(3):
            known = client.submit({"request_id": str(number)})
            client.report_action(known, {"decision": True})
        assert client.stats().dropped == {"queue_full": 6}
        client.report_action(client.submit(failing), {"decision": True})
        assert client.stats().dropped == {"queue_full": 6, "mapping": 2}
        client.close(0)
