"""The explorer over real HTTP, on rows that the writer wrote."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import Request
from sqlalchemy import text

from app.advising.serving import Models
from app.api.explorer import acts, asked, decision, drift, limits, pages
from app.api.explorer.route import PageRoute
from app.domain.errors import ShadowLogUnavailable
from app.domain.model.manifest import MANIFEST_NAME
from app.policy.scripted import SCRIPTED_MANIFEST, ScriptedPolicy
from app.policy.versions.store import report_beside
from app.shadow_log.log import ShadowLog
from app.shadow_log.reading.explore import Explorer, Filters
from app.shadow_log.schema import tables
from tests.service.api.explorer.site import FORM, Site, ids, traded
from tests.service.running import drained, request, running, settings_for, until
from tests.service.shadow_log.schema.test_views import foretelling


async def test_whoever_has_no_token_is_sent_to_the_form_and_learns_nothing(site: Site) -> None:
    decision = await site.decide("secret")
    for path in ("/ui", "/ui/decisions", f"/ui/decisions/{decision}", "/ui/models", "/ui/state",
                 "/ui/decisions.csv", "/ui/decisions.jsonl", "/ui/limits",
                 "/ui/nothing"):  # fmt: skip
        answer = await site.api.client.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/ui/login?next=/ui"), path
    assert site.api.metric("advisor_auth_failures_total", reason="missing") == 0, "nobody failed"
    stale = {"Cookie": "advisor_token=advisor.reader.revoked"}
    assert (await site.api.client.get("/ui", headers=stale)).status_code == 303
    assert site.api.metric("advisor_auth_failures_total", reason="unknown") == 1
    assert (await site.api.client.get("/")).headers["location"] == "/ui"
    assert "secret" not in (await site.api.client.get("/ui/login")).text


async def test_a_version_has_a_page_with_its_worth_over_time_and_what_came_of_its_chances(
    site: Site,
) -> None:
    """Advice rejects throughout: it earns 0 where the agent loses."""
    for day in range(2):
        at = (datetime.now(UTC) - timedelta(days=day)).isoformat()
        await traded(site, f"d{day}", -3.0, candidate__ts=at, market__bar_closed_at=at)
    await site.stored()

    async def registered() -> bool:
        return (await site.get("/ui/models/scripted-1")).status_code == 200

    await until(registered)
    shown = (await site.get("/ui/models/scripted-1?days=all")).text
    document = json.loads(chart(shown, "apart"))
    gained = [value for _, value in document["series"][2]["data"] if value is not None]
    assert gained
    assert all(value > 0 for value in gained), "the agent lost, the advice did not trade"
    assert [value for _, value in document["series"][0]["data"]] == [None, None]
    assert "Chance that was told" in shown
    assert json.loads(chart(shown, "behaviour"))["series"][1]["data"][-1][1] == 1.0
    assert "no alias names it" in shown
    assert "served now as primary" in shown
    assert "R summed over all decisions" in shown
    for unknown in ("/ui/models/nobody", "/ui/models/..%2f..%2fetc"):
        assert (await site.get(unknown)).status_code == 404


def chart(page: str, name: str) -> str:
    """The options of a chart."""
    found = re.search(rf'id="{name}-options">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return found[1]


async def test_an_agent_is_told_on_a_page_what_it_lacks(site: Site) -> None:
    answer = await site.get("/ui/decisions", "agent")
    assert answer.status_code == 403
    assert answer.headers["content-type"].startswith("text/html")
    assert "needs the role reader; agent has agent" in answer.text


async def test_a_token_in_the_form_opens_the_pages_and_nothing_else(site: Site) -> None:
    answer = await site.post(
        "/ui/login", {"token": site.tokens["reader"], "next": "/ui/decisions?symbol=BTCUSDT"}
    )
    assert answer.status_code == 303
    assert answer.headers["location"] == "/ui/decisions?symbol=BTCUSDT"
    kept = answer.headers["set-cookie"]
    assert "HttpOnly" in kept
    assert "SameSite=lax" in kept
    assert "Path=/ui" in kept
    cookie = {"Cookie": kept.partition(";")[0]}
    assert (await site.api.client.get("/ui", headers=cookie)).status_code == 200
    assert (await site.api.client.get("/models", headers=cookie)).status_code == 401
    left = await site.post("/ui/logout", {}, **cookie)
    assert 'advisor_token=""' in left.headers["set-cookie"]


@pytest.mark.parametrize(
    ("token", "status", "said"),
    [("wrong", 401, "not known here"), ("", 401, "not known here"), ("agent", 403, "role agent")],
)
async def test_a_form_with_another_token_says_why_and_keeps_nothing(
    site: Site, token: str, status: int, said: str
) -> None:
    answer = await site.post("/ui/login", {"token": site.tokens.get(token, token)})
    assert answer.status_code == status
    assert said in answer.text
    assert "set-cookie" not in answer.headers
    if status == 401:
        assert site.api.metric("advisor_auth_failures_total", reason="unknown") == 1


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/ui",
        "//evil.example/ui",
        "/\\evil.example",
        "/ui\\..\\x",
        "javascript:1",
        "/metrics",
        "\r\nSet-Cookie: a=b",
    ],
)
async def test_the_form_leads_nowhere_but_to_pages_of_ours(site: Site, target: str) -> None:
    answer = await site.post("/ui/login", {"token": site.tokens["reader"], "next": target})
    assert answer.headers["location"] == "/ui"


async def test_another_pages_form_does_nothing(site: Site) -> None:
    change = {"state": "HALTED", "reason": "theirs", "sure": "yes"}
    cookie = {"Cookie": f"advisor_token={site.tokens['operator']}"}
    for origin in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
        answer = await site.post("/ui/state", change, **cookie, **origin)
        assert answer.status_code == 403
    without = await site.api.client.post("/ui/state", data=change, headers=FORM | cookie)
    assert without.status_code == 403
    assert site.api.service.controls.state.value == "ACTIVE"


async def test_an_operator_halts_from_the_page_and_a_reader_does_not(site: Site) -> None:
    change = {"state": "HALTED", "reason": "a <b>drill</b>", "sure": "yes"}
    assert (await site.post("/ui/state", change, "reader")).status_code == 403
    unsure = await site.post("/ui/state", change | {"sure": ""}, "operator")
    assert unsure.status_code == 422
    assert "nothing was changed" in unsure.text
    wrong = await site.post("/ui/state", change | {"state": "SLEEPING"}, "operator")
    assert wrong.status_code == 422
    assert "state" in wrong.text
    assert site.api.service.controls.state.value == "ACTIVE"
    assert (await site.post("/ui/state", change, "operator")).status_code == 303
    await site.stored()
    shown = (await site.get("/ui/state")).text
    assert "a &lt;b&gt;drill&lt;/b&gt;" in shown
    assert "<td>operator</td>" in shown
    assert "the trading state is HALTED" in (await site.get("/ui")).text


async def test_an_empty_record_says_how_to_fill_it(site: Site) -> None:
    assert "Nothing is recorded yet" in (await site.get("/ui")).text
    assert "No decision matches" in (await site.get("/ui/decisions")).text
    assert (await site.get("/ui/models")).status_code == 200


async def test_the_overview_counts_r_of_both_arms(site: Site) -> None:
    """The plan risks quantity x |entry - stop|; a trade that loses it whole is -1 R, and advice
    that rejects earns 0."""
    plan = request("x")["plan"]
    risk = plan["quantity"] * abs(plan["entry"] - plan["stop"])
    await traded(site, "lost", -risk)
    await traded(site, "won", 0.5 * risk)
    await site.decide("open")
    await site.stored()
    shown = re.sub(r"<[^>]+>|\s+", " ", (await site.get("/ui")).text)
    shown = re.sub(r" +", " ", shown)
    assert "+0.250 R a decision too few days for an interval" in shown
    assert "agent -0.50 R, advice +0.00 R 2 decisions with both known" in shown
    assert "0.0 % [0.0 %, 65.8 %] kappa 0.00" in shown, "0 of 2 by Wilson: at most 0.6576"
    assert "Decisions 3 2 apart , 0 abstained" in shown


async def test_filters_find_what_they_name_and_make_addresses(site: Site) -> None:
    lost = await traded(site, "desk/lost", -1.0)
    other = await site.decide("desk/other", candidate__symbol="ETHUSDT")
    old = await site.decide("desk/old", candidate__news_summary="Exchange HALTS withdrawals")
    await site.stored()
    found = {
        "": {lost, other, old},
        "?symbol=ETHUSDT": {other},
        "?q=halts+withdrawals": {old},
        "?q=DESK/LO": {lost},
        "?disagree=1": {lost},
        "?outcome=tp1": {lost},
        "?status=abstained": set(),
        "?version=scripted-1": {lost, other, old},
        "?version=nobody": set(),
        "?since=2000-01-01&until=2001-01-01": set(),
        "?since=2020-01-01": {lost, other, old},
    }
    for query, wanted in found.items():
        page = await site.get(f"/ui/decisions{query}")
        assert page.status_code == 200, query
        assert set(ids(page.text)) == wanted, query
    led = await site.get(f"/ui/decisions?q={lost}")
    assert led.headers["location"] == f"/ui/decisions/{lost}"


@pytest.mark.parametrize(
    "query",
    ["since=yesterday", "after=nowhere", "after=2024-01-01_x", "until=2024-13-01", f"q={'x' * 201}",
     "symbol=%00", "since=0001-01-01T00:00:00%2B23:59", "until=9999-12-31T23:59:59-23:59",
     f"after=0001-01-01T00:00:00%2B23:59_{'0' * 32}"],
)  # fmt: skip
async def test_a_question_that_cannot_be_read_is_told_on_a_page(site: Site, query: str) -> None:
    answer = await site.get(f"/ui/decisions?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.text


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/ui?since=yesterday", "since=&#39;yesterday&#39; is no time"),
        ("/ui?since=2024-03-02&until=2024-03-01", "is not before 2024-03-01"),
        ("/ui?day=30", "did you mean days?"),
        ("/ui/models?version=x", "it knows days, since, until"),
        ("/ui/decisions?symbl=BTCUSDT", "did you mean symbol?"),
        ("/ui/decisions.csv?simbol=BTCUSDT", "did you mean symbol?"),
        ("/ui/decisions.csv?after=x", "it knows q, symbol"),
        ("/ui/decisions?since=2024-03-02&until=2024-03-01", "is not before 2024-03-01"),
        ("/ui/decisions?status=Advised", "did you mean advised?"),
        ("/ui/decisions?veto=spred", "did you mean SPREAD?"),
        ("/ui/decisions?disagree=0", "did you mean 1?"),
        ("/ui/decisions?symbol=A&symbol=B", "symbol is said 2 times"),
        ("/ui?days=30&since=2024-03-01", "say one of them"),
    ],
)
async def test_a_word_that_a_page_cannot_follow_is_refused(
    site: Site, path: str, told: str
) -> None:
    await site.decide("it")
    await site.stored()
    answer = await site.get(path)
    assert answer.status_code == 400
    assert told in answer.text


ROUTERS = (acts, decision, drift, limits, pages)
ADDRESSES = sorted(
    route.path
    for module in ROUTERS
    for route in module.router.routes
    if isinstance(route, PageRoute) and "GET" in (route.methods or ()) and route.path != "/"
)


@pytest.mark.parametrize("path", [path for path in ADDRESSES if "static" not in path])
async def test_no_page_passes_over_a_word_that_it_does_not_know(site: Site, path: str) -> None:
    one = {"id": 1 if "limits" in path else uuid4(), "version": "scripted-1"}
    answer = await site.get(f"{path.format(**one)}?nonsense=1")
    assert answer.status_code == 400
    assert "knows no word" in answer.text


async def test_an_outage_is_no_version_that_is_missing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self: object) -> None:
        raise ShadowLogUnavailable("Postgres: away")

    for name in ("models", "aliases"):
        monkeypatch.setattr(ShadowLog, name, away)
    answer = await site.get("/ui/models/scripted-1")
    assert answer.status_code == 503
    assert "cannot be read now" in answer.text


async def test_a_reason_that_is_too_long_has_characters(site: Site) -> None:
    change = {"state": "HALTED", "reason": "x" * 201, "sure": "yes"}
    answer = await site.post("/ui/state", change, "operator")
    assert answer.status_code == 422
    assert "reason: String should have at most 200 characters" in answer.text


async def test_the_overview_counts_between_two_times(site: Site) -> None:
    for day in (1, 3, 9):
        at = datetime(2024, 3, day, tzinfo=UTC).isoformat()
        await site.decide(f"d{day}", candidate__ts=at, market__bar_closed_at=at)
    await site.stored()
    shown = (await site.get("/ui?since=2024-03-03&until=2024-03-09")).text
    assert '<a href="/ui/decisions?version=scripted-1">1</a>' in shown
    assert "2024-03-03 00:00:00 to 2024-03-09 00:00:00" in shown
    shown = (await site.get("/ui?since=2024-03-02&until=")).text
    assert '<a href="/ui/decisions?version=scripted-1">2</a>' in shown


async def test_a_candidate_of_long_ago_is_no_latency(site: Site) -> None:
    """A replay: its market's time lies years before the request."""
    at = (datetime.now(UTC) - timedelta(days=9 * 365.25)).isoformat()
    decision = await site.decide("old", candidate__ts=at, market__bar_closed_at=at)
    await site.stored()
    shown = (await site.get(f"/ui/decisions/{decision}")).text
    steps = re.findall(
        r"<td>(candidate|advice)</td><td>(.*?)</td><td class=\"n\">(.*?)</td>", shown
    )
    assert steps[0] == ("candidate", "BTCUSDT at its bar, -9.0 years from the request", "–")
    assert re.fullmatch(r"\+\d\.\d s", steps[1][2])


async def test_whoever_is_not_known_any_more_learns_that_nothing_was_done(site: Site) -> None:
    change = {"state": "HALTED", "reason": "late", "sure": "yes"}
    answer = await site.post("/ui/state", change, None, Cookie="advisor_token=revoked")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/login?lost=1")
    assert "was not done" in (await site.api.client.get("/ui/login?lost=1")).text
    assert site.api.service.controls.state.value == "ACTIVE"


async def test_an_address_of_nothing_is_told_on_a_page(site: Site) -> None:
    for path in ("/ui/nothing", "/ui/decisions/a/b", "/ui/static/a/b"):
        answer = await site.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (
            404,
            "text/html; charset=utf-8",
        ), path
    assert (await site.post("/ui/models", {}, "operator")).status_code == 404
    for path in ("/ui", "/ui/models"):
        led = await site.get(f"{path}/")
        assert (led.status_code, led.headers["location"]) == (307, path)


async def test_pages_follow_each_other_without_loss_or_repeat(site: Site) -> None:
    """Also where many decisions have one time."""
    moments = [datetime.now(UTC) - timedelta(seconds=i // 3) for i in range(10)]
    for i, moment in enumerate(moments):
        at = moment.isoformat()
        await site.decide(f"p{i}", candidate__ts=at, market__bar_closed_at=at)
    await site.stored()
    explorer, place, seen = Explorer(site.api.service.shadow_log.engine), None, []
    while True:
        page = await explorer.page(Filters(), place, 4)
        seen += [(row["as_of"], row["decision_id"]) for row in page.rows]
        place = page.following
        if place is None:
            break
    assert len(set(seen)) == len(seen) == 10
    assert seen == sorted(seen, reverse=True)


async def test_a_search_for_words_goes_on_from_page_to_page(site: Site) -> None:
    """Three decisions at a time are looked through; the two that match are both found, once."""
    moments = [datetime.now(UTC) - timedelta(seconds=i // 2) for i in range(8)]
    for i, moment in enumerate(moments):
        at = moment.isoformat()
        news = "withdrawals halted" if i in (1, 6) else "calm"
        await site.decide(
            f"p{i}", candidate__ts=at, market__bar_closed_at=at, candidate__news_summary=news
        )
    await site.stored()
    explorer = Explorer(site.api.service.shadow_log.engine, looked_through=3)
    place, pages = None, []
    while True:
        page = await explorer.page(Filters(words="Halted"), place, 4)
        pages.append([row["request_id"] for row in page.rows])
        place = page.following
        if place is None:
            break
    assert [name for names in pages for name in names] == ["p1", "p6"]
    assert len(pages) == 3


@pytest.mark.parametrize(
    "words", ['says "Über', "überschuldung", "ÜBERSCHULDUNG", "back\\slash", "ÉTÉ"]
)
async def test_words_are_found_as_people_write_them(site: Site, words: str) -> None:
    """Whatever the database's locale, and however JSON writes them."""
    await site.decide("a", candidate__note='He says "Überschuldung" of back\\slash, l\'été')
    await site.decide("b", candidate__note="Uberschuldung")
    await site.stored()
    explorer = Explorer(site.api.service.shadow_log.engine)
    found = await explorer.page(Filters(words=words), None, 4)
    assert [row["request_id"] for row in found.rows] == ["a"]


async def test_what_is_rare_goes_on_from_page_to_page(site: Site) -> None:
    """Three rows at a time are held against the filters, and those of one decision that are cut by
    that: all that match are found, once."""
    moments = [datetime.now(UTC) - timedelta(seconds=i // 2) for i in range(8)]
    for i, moment in enumerate(moments):
        at = moment.isoformat()
        symbol = "ETHUSDT" if i in (0, 6) else "BTCUSDT"
        await site.decide(
            f"p{i}", candidate__ts=at, market__bar_closed_at=at, candidate__symbol=symbol
        )
    await site.stored()
    async with site.api.service.shadow_log.engine.begin() as connection:
        copied = ", ".join({c.name for c in tables.comparisons.c} - {"model_version"})
        await connection.execute(
            text(
                f"INSERT INTO comparisons ({copied}, model_version)"
                f" SELECT {copied}, 'second' FROM comparisons"
            )
        )
    explorer = Explorer(site.api.service.shadow_log.engine, looked_at=3)
    found: dict[str, list[str]] = {}
    for symbol in ("ETHUSDT", "BTCUSDT"):
        filters = Filters(symbol=symbol, version=SCRIPTED_MANIFEST.model_version)
        place, seen, pages = None, [], 0
        while True:
            page = await explorer.page(filters, place, 2)
            seen += [row["request_id"] for row in page.rows]
            place, pages = page.following, pages + 1
            if place is None:
                break
        found[symbol] = sorted(seen)
        assert pages >= 3
    assert found == {"ETHUSDT": ["p0", "p6"], "BTCUSDT": ["p1", "p2", "p3", "p4", "p5", "p7"]}


async def test_a_request_id_leads_to_its_decision(site: Site) -> None:
    decision = await site.decide("desk/7")
    await site.stored()
    led = await site.get("/ui/decisions?q=desk/7")
    assert led.headers["location"] == f"/ui/decisions/{decision}"


async def test_one_decision_shows_what_happened_and_that_it_replays(site: Site) -> None:
    before = await site.decide("before")
    decision = await traded(
        site, "it", -2.0, candidate__news_summary="</script><script>alert(1)</script> & more"
    )
    await site.stored()
    shown = (await site.get(f"/ui/decisions/{decision}")).text
    assert "it is the same record" in shown
    assert "<script>alert(1)" not in shown
    assert "tp1" in shown
    assert ids(shown) == [before]
    told = re.findall(
        r"<tr><td>[-: \d]+</td><td>(candidate|request|advice|agent|outcome)</td>", shown
    )
    assert told == ["candidate", "request", "advice", "agent", "outcome"]
    links = re.findall(r"<tr><td>(\w+)</td><td><code>[0-9a-f]+</code>", shown)
    assert sorted(links) == ["agent_action", "decision", "outcome"]


async def test_what_is_not_there_is_said(site: Site) -> None:
    missing = await site.get("/ui/decisions/00000000-0000-5000-8000-000000000000")
    assert missing.status_code == 404
    assert "is in the record" in missing.text
    for path in ("/ui/decisions/nonsense", "/ui/static/..%2Fpages.py", "/ui/static/nothing.css"):
        assert (await site.get(path)).status_code == 404, path


async def test_an_export_holds_what_is_seen_and_no_formula(site: Site) -> None:
    lost = await traded(site, "=cmd()", -1.0)
    await site.decide("other", candidate__symbol="ETHUSDT")
    await site.stored()
    answer = await site.get("/ui/decisions.csv?symbol=BTCUSDT")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    [row] = csv.DictReader(io.StringIO(answer.text))
    assert row["decision_id"] == lost
    assert row["request_id"] == "'=cmd()"
    assert row["agent_approve"] == "True"
    assert float(row["advice_earned_r"]) == 0


async def test_an_export_in_json_lines_holds_the_same_rows(site: Site) -> None:
    lost = await traded(site, "lost", -1.0)
    await site.decide("other", candidate__symbol="ETHUSDT")
    await site.stored()
    answer = await site.get("/ui/decisions.jsonl?symbol=BTCUSDT")
    assert answer.headers["content-type"].startswith("application/jsonl")
    [row] = [json.loads(line) for line in answer.text.splitlines()]
    assert row["decision_id"] == lost
    assert row["agent_approve"] is True
    assert row["control_veto_codes"] == []
    assert len((await site.get("/ui/decisions.jsonl")).text.splitlines()) == 2
    assert (await site.get("/ui/decisions.jsonl", "agent")).status_code == 403


async def test_pages_say_what_a_browser_may_do(site: Site) -> None:
    answer = await site.get("/ui")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert not re.findall(r"(?:src|href)=\"(?!/[a-z]|#)", answer.text), "everything comes from here"


async def test_an_alias_moves_and_goes_back_from_the_page(site: Site) -> None:
    await site.api.service.shadow_log.register_model(SCRIPTED_MANIFEST)
    unknown = await site.post(
        "/ui/aliases/champion",
        {"model_version": "nobody", "reason": "try", "sure": "yes"},
        "operator",
    )
    assert unknown.status_code in (404, 409)
    moved = {"reason": "try", "sure": "yes"}
    for name in ("scripted-1", "none"):
        answer = await site.post(
            "/ui/aliases/champion", {"model_version": name} | moved, "operator"
        )
        assert answer.status_code == 303, answer.text
    back = await site.post("/ui/aliases/champion", {"back": "1"} | moved, "operator")
    assert back.status_code == 303
    again = await site.post("/ui/aliases/champion", {"back": "1"} | moved, "operator")
    assert again.status_code == 409
    shown = (await site.get("/ui/models")).text
    assert "champion: scripted-1" in shown
    assert "rollback from none: try" in shown


async def test_a_version_is_promoted_and_demoted_from_its_page(site: Site) -> None:
    await site.api.service.shadow_log.register_model(SCRIPTED_MANIFEST)
    page, aliases = "/ui/models/scripted-1", "/ui/aliases/champion"
    shown = (await site.get(page, "operator")).text
    assert '<option value="champion ">champion (now none)</option>' in shown
    assert "<button>Let it name this version</button>" in shown
    assert "Let it name this version" not in (await site.get(page)).text, "a reader has no buttons"
    first = {"alias": "champion ", "reason": "it is good", "sure": "yes"}
    assert (await site.post(f"{page}/alias", first, "reader")).status_code == 403
    for wrong in ({"sure": ""}, {"reason": ""}, {"alias": "Champion "}, {"alias": ""}):
        assert (await site.post(f"{page}/alias", first | wrong, "operator")).status_code == 422
    assert (await site.post(f"{page}/alias", first, "operator")).status_code == 303
    late = await site.post(f"{page}/alias", first | {"reason": "again"}, "operator")
    assert late.status_code == 409, "the page was made before the alias moved"
    shown = (await site.get(page, "operator")).text
    assert "champion steps back to none" in shown
    step = {"demote": "1", "seen": seen_on(shown), "reason": "it lost", "sure": "yes"}
    assert (await site.post(aliases, step | {"reason": ""}, "operator")).status_code == 422
    assert (await site.post(aliases, step, "reader")).status_code == 403
    assert (await site.post(aliases, step, "operator")).status_code == 303
    again = await site.post(aliases, step | {"seen": ""}, "operator")
    assert again.status_code == 409
    del step["seen"]
    assert "names no version" in (await site.post(aliases, step, "operator")).text
    shown = (await site.get("/ui/models")).text
    assert "champion: none" in shown
    assert "rollback from scripted-1: demoted: it lost" in shown


async def test_a_versions_report_is_shown_in_a_sandbox(site: Site, tmp_path: Path) -> None:
    await site.api.service.shadow_log.register_model(SCRIPTED_MANIFEST)
    page = "/ui/models/scripted-1"
    assert "No report lies beside it" in (await site.get(page)).text
    assert (await site.get(f"{page}/report")).status_code == 404
    folder = site.api.settings.models_dir / "scripted-1"
    folder.mkdir(parents=True)
    (folder / MANIFEST_NAME).write_text(json.dumps(SCRIPTED_MANIFEST.as_json()))
    (folder / "README.md").write_text("# A card\n\n<script>x</script> **reads**\n")
    shown = (await site.get(page)).text
    assert "<h3>A card</h3>" in shown
    assert "&lt;script&gt;x&lt;/script&gt; <strong>reads</strong>" in shown
    report_beside(folder).write_text("<p>found <script>parent.document</script></p>")
    assert f'src="{page}/report"' in (await site.get(page)).text
    answer = await site.get(f"{page}/report")
    assert answer.text == "<p>found <script>parent.document</script></p>"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none';")
    assert "allow-same-origin" not in policy
    assert (await site.get(f"{page}/report", "agent")).status_code == 403
    assert (await site.api.client.get(f"{page}/report")).status_code == 303
    (folder / "README.md").unlink()
    (tmp_path / "secret").write_text("of somebody else")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    assert "of somebody else" not in (await site.get(page)).text, "a link leads anywhere"


def versions_of(rows: Sequence[dict[str, Any]]) -> set[str]:
    return {row["model_version"] for row in rows}


async def test_versions_in_shadow_have_rows_of_their_own(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    other = SCRIPTED_MANIFEST.model_copy(update={"model_version": "other-1"})
    second = ScriptedPolicy(["H"], manifest=other)
    settings = settings_for(database_url, valkey_url, tmp_path)
    async with running(settings, Models(ScriptedPolicy(["A"]), (second,))) as api:
        answer = (await api.advise(request("two"))).json()
        await drained(settings)
        explorer = Explorer(api.service.shadow_log.engine)
        page = await explorer.page(Filters(), None, 10)
        assert versions_of(page.rows) == {"scripted-1"}
        page = await explorer.page(Filters(version="other-1"), None, 10)
        assert versions_of(page.rows) == {"other-1"}
        shown = (await api.client.get(f"/ui/decisions/{answer['decision_id']}")).text
        assert "scripted-1" in shown
        assert "other-1" in shown
        [pair] = await explorer.agreement_of_versions(
            datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1)
        )
        assert (pair["decisions"], pair["agreements"]) == (1, 0)
        shown = (await api.client.get("/ui/models")).text
        assert '<a href="/ui/models?days=30" aria-current="true">30 days</a>' in shown
        assert 'id="matrix"' in shown
        shown = (await api.client.get("/ui/models?since=2020-01-01&until=2020-02-01")).text
        assert "2020-01-01 00:00" in shown
        assert "No two versions answered the same decision in this span." in shown


async def test_a_request_with_what_is_needed_alone_is_shown_as_well(site: Site) -> None:
    now = datetime.now(UTC).isoformat()
    bare = {
        "request_id": "bare",
        "candidate": {"symbol": "BTCUSDT", "direction": "long", "ts": now},
        "plan": {"entry": 100.0, "stop": 99.0, "targets": [102.0], "quantity": 1.0},
    }
    answer = await site.api.client.post(
        "/advise", json=bare, headers={"Authorization": f"Bearer {site.tokens['agent']}"}
    )
    assert answer.status_code == 200, answer.text
    await site.stored()
    shown = await site.get(f"/ui/decisions/{answer.json()['decision_id']}")
    assert shown.status_code == 200, shown.text
    assert "the same record" in shown.text
    assert ids((await site.get("/ui/decisions")).text) == [answer.json()["decision_id"]]


async def test_what_a_version_foretold_is_shown_with_its_decision(site: Site) -> None:
    event = foretelling("foretold", 0.25)
    await site.api.service.shadow_log.append([event])
    shown = (await site.get(f"/ui/decisions/{event.key}")).text
    assert '<td class="n">25.0 %</td><td class="n">30.0 %</td>' in shown
    assert "What versions foretold" in shown
    [row] = csv.DictReader(io.StringIO((await site.get("/ui/decisions.csv")).text))
    assert (row["win_probability"], row["stopped_probability"]) == ("0.25", "0.3")
    expected = float(row["expected_r"])
    assert expected < 0
    listed = (await site.get("/ui/decisions")).text
    assert f'<td class="n">{expected:+.2f}</td>\n<td class="codes">' in listed


@pytest.mark.parametrize("edge", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_a_time_outside_the_calendar_is_named(site: Site, edge: str) -> None:
    for word, written in (("since", edge), ("until", edge), ("after", f"{edge}_{UUID(int=0)}")):
        answer = await site.api.client.get(
            "/ui/decisions", params={word: written}, headers=site.as_("reader")
        )
        assert answer.status_code == 400, word
        assert word in answer.text


@pytest.mark.parametrize("edge", [datetime.min, datetime.max])
def test_decisions_at_an_edge_of_the_calendar_have_a_span(edge: datetime) -> None:
    """A clock that is wrong, or a test of somebody else: the pages are there all the same."""
    moment = edge.replace(tzinfo=UTC)
    request = Request({"type": "http", "query_string": b"days=30", "headers": []})
    span = asked.span(request, (moment, moment))
    assert span.since <= moment <= span.until


async def test_the_head_of_a_page_may_be_asked_for(site: Site) -> None:
    for path, status in (("/ui", 200), ("/ui/decisions", 200), ("/ui/login", 303), ("/", 307)):
        answer = await site.api.client.head(path, headers=site.as_("reader"))
        assert (answer.status_code, answer.content) == (status, b""), path
    assert (await site.api.client.head("/ui/login")).status_code == 200


def seen_on(page: str) -> str:
    """What a form of a page says that it showed."""
    return re.findall(r'name="seen" value="([^"]*)"', page)[-1]


async def test_of_two_tabs_the_second_rolls_nothing_back_again(site: Site) -> None:
    await site.api.service.shadow_log.register_model(SCRIPTED_MANIFEST)
    sure = {"reason": "try", "sure": "yes"}
    for name in ("scripted-1", "none"):
        await site.post("/ui/aliases/champion", {"model_version": name} | sure, "operator")
    tab = {"back": "1", "seen": seen_on((await site.get("/ui/models", "operator")).text)} | sure
    assert (await site.post("/ui/aliases/champion", tab, "operator")).status_code == 303
    second = await site.post("/ui/aliases/champion", tab, "operator")
    assert second.status_code == 409
    assert "look again; nothing was changed" in second.text
    assert "champion: scripted-1" in (await site.get("/ui/models")).text


async def test_a_rollback_says_where_it_leads_and_is_offered_where_it_leads_somewhere(
    site: Site,
) -> None:
    await site.api.service.shadow_log.register_model(SCRIPTED_MANIFEST)
    sure = {"reason": "try", "sure": "yes"}
    await site.post("/ui/aliases/champion", {"model_version": "scripted-1"} | sure, "operator")
    assert "Roll it back" not in (await site.get("/ui/models", "operator")).text
    await site.post("/ui/aliases/champion", {"model_version": "none"} | sure, "operator")
    assert "Roll it back to scripted-1" in (await site.get("/ui/models", "operator")).text


async def test_a_tab_of_before_a_halt_ends_no_halt_and_may_halt(site: Site) -> None:
    seen = seen_on((await site.get("/ui/state", "operator")).text)
    old = {"seen": seen, "reason": "drill", "sure": "yes"}
    for state, status in (("HALTED", 303), ("ACTIVE", 409), ("REDUCING", 409), ("HALTED", 303)):
        answer = await site.post("/ui/state", old | {"state": state}, "operator")
        assert answer.status_code == status, state
    assert site.api.service.controls.state.value == "HALTED"
