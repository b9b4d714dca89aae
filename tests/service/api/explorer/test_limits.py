"""Limits on pages: tried on the record, adopted, gone back from."""

from __future__ import annotations

import re
from typing import Any

from app.domain.rules.limits import parse_limits
from app.shadow_log.limits_history import LimitsHistory
from app.shadow_log.proof.verify import verify_log
from tests.service.api.explorer.site import Site, ids, traded
from tests.service.running import ROOT, request, until

SHIPPED = (ROOT / "limits.toml").read_text()
NARROW = SHIPPED.replace("max_bps = 10.0", "max_bps = 1.0").replace(
    'version = "', 'version = "narrow-'
)


async def proposed(site: Site, toml: str = NARROW, **fields: str) -> str:
    """The address of a proposal that was tried to its end."""
    told = {"profile": "", "toml": toml, "note": "costs", "against": ""} | fields
    answer = await site.post("/ui/limits", told, "operator")
    assert answer.status_code == 303, answer.text
    path = str(answer.headers["location"])
    await ended(site, path)
    return path


async def tried_again(site: Site, path: str, **fields: str) -> None:
    answer = await site.post(f"{path}/trial", fields, "operator")
    assert answer.status_code == 303, answer.text
    await ended(site, path)


async def ended(site: Site, path: str) -> None:
    """Until nothing is tried any more."""

    async def over() -> bool:
        return "Being tried" not in (await site.get(path)).text

    await until(over)


async def test_what_cannot_be_stored_in_a_form_is_cleaned_or_refused(site: Site) -> None:
    """As in the API's own texts: a control character is a space."""
    path = await proposed(site, note="a\0b\x1b[31m\r\nc")
    assert "a b [31m c" in words((await site.get(path)).text)
    for form in ({"toml": NARROW, "profile": "\0"}, {"toml": "\0", "profile": ""}):
        assert (await site.post("/ui/limits", form, "operator")).status_code == 422
    back = {"profile": "\0", "seen": "x", "reason": "x", "sure": "yes"}
    assert (await site.post("/ui/limits/back", back, "operator")).status_code in (409, 422)


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


async def test_a_proposal_says_what_it_would_have_earned_and_which_decisions_change(
    site: Site,
) -> None:
    """One trade lost its risk at a spread of 4, one made half at a spread of 0.5."""
    plan = request("x")["plan"]
    risk = plan["quantity"] * abs(plan["entry"] - plan["stop"])
    lost = await traded(site, "lost", -risk, candidate__spread_bps=4.0)
    await traded(site, "won", 0.5 * risk, candidate__spread_bps=0.5)
    await site.stored()
    shown = (await site.get(await proposed(site))).text
    told = words(shown)
    assert "agent 2 2 → 1 -0.50 → +0.50 of 2 +0.5000 too few days for an interval" in told
    assert "By symbol, the agent's orders" in told
    assert "BTCUSDT 2 2 → 1 -0.50 → +0.50 of 2 +0.5000" in told
    assert "SPREAD 0 → 1 +0.00 → +1.00" in told
    assert ids(shown) == [lost]
    assert "spread.max_bps 10.0 1.0" in told
    assert site.api.service.controls.limits.spread.max_bps == 10.0, "nothing changes by trying"


async def test_another_version_and_other_costs_are_tried_with_the_same_words(site: Site) -> None:
    """The primary itself as the other version, which says the same; trades that told too little for
    other costs are named."""
    plan = request("x")["plan"]
    risk = plan["quantity"] * abs(plan["entry"] - plan["stop"])
    await traded(site, "lost", -risk)
    await site.stored()
    path = await proposed(site, SHIPPED, version="scripted-1", fee="0", against="recorded")
    shown = (await site.get(path, "operator")).text
    told = words(shown)
    assert "scripted-1 advises in the place of the primary; a fee of 0.0 of notional" in told
    assert "agent 1 1 → 1" in told
    assert "agent: not told of its trade: exit price, fees (1)" in told
    assert re.search(r"advice 1 \d → \d", told)
    assert 'name="version" maxlength="200" list="versions"' in shown
    assert 'value="scripted-1"' in shown
    failed = words((await site.get(await proposed(site, SHIPPED, version="nobody-1"))).text)
    assert "nobody ever heard of a version" in failed


async def test_decisions_that_stay_refused_by_other_rules_are_folded_below_the_choice(
    site: Site,
) -> None:
    still = await site.decide("still", candidate__spread_bps=20.0)
    turned = await site.decide("turned", candidate__spread_bps=4.0)
    await site.stored()
    other = SHIPPED.replace("max_bps = 10.0", "max_bps = 100.0")
    other = other.replace("min_ratio = 1.0 ", "min_ratio = 90.0 ").replace(
        'version = "', 'version = "other-'
    )
    shown = (await site.get(await proposed(site, other), "operator")).text
    below = shown[shown.index("Let them judge") :]
    open_rows, folded = below.split("refused before and after, by other rules</summary>")
    assert ids(shown[: shown.index("Let them judge")]) == []
    assert set(ids(open_rows)) == {turned}
    assert set(ids(folded)) == {still}


async def test_a_proposal_is_adopted_with_its_report_and_gone_back_from(site: Site) -> None:
    await site.decide("one", candidate__spread_bps=4.0)
    await site.stored()
    path = await proposed(site)
    shown = (await site.get(path, "operator")).text
    seen = re.search(r'name="seen" value="(sha256:\w+)"', shown)
    assert seen is not None
    known = re.search(r'name="report" value="(\d+)"', shown)
    assert known is not None
    form = {"seen": seen[1], "report": known[1], "reason": "a <b>trial</b>", "sure": "yes"}
    await tried_again(site, path, fee="0.01")  # By somebody else, before this one adopts.
    lost = await site.post(f"{path}/adopt", form | {"report": "99"}, "operator")
    assert lost.status_code == 404, "a report on another proposal, or none"
    assert (await site.post(f"{path}/adopt", form, "reader")).status_code == 403
    unsure = await site.post(f"{path}/adopt", form | {"sure": ""}, "operator")
    assert unsure.status_code == 422
    nameless = await site.post(f"{path}/adopt", form | {"reason": ""}, "operator")
    assert nameless.status_code == 422
    foreign = await site.post(f"{path}/adopt", form, "operator", Origin="https://evil.example")
    assert foreign.status_code == 403
    assert site.api.service.controls.limits.spread.max_bps == 10.0
    assert (await site.post(f"{path}/adopt", form, "operator")).status_code == 303
    assert site.api.service.controls.limits.spread.max_bps == 1.0
    again = await site.post(f"{path}/adopt", form, "operator")
    assert again.status_code == 409, "looked at what judges no longer"
    page = (await site.get("/ui/limits", "operator")).text
    assert "a &lt;b&gt;trial&lt;/b&gt;" in page
    assert "in the place of the file" in page
    history = LimitsHistory(site.api.service.shadow_log)
    [adoption] = await history.adoptions(9)
    assert (adoption.report_id, adoption.changed_by) == (int(known[1]), "operator")
    adopted_by = f"{path}?report={known[1]}"
    assert f'href="{adopted_by}"' in page
    assert "a fee of 0.01" in (await site.get(path)).text
    assert "a fee of 0.01" not in (await site.get(adopted_by)).text
    for unknown in ("99", "x", "9" * 30):
        assert (await site.get(f"{path}?report={unknown}")).status_code == 404
    hashed = parse_limits(NARROW, "here").hash()
    back = {"profile": "", "seen": hashed, "reason": "worse", "sure": "yes"}
    assert (await site.post("/ui/limits/back", back, "operator")).status_code == 303
    assert site.api.service.controls.limits.spread.max_bps == 10.0
    assert (await site.post("/ui/limits/back", back, "operator")).status_code == 409
    assert not (await verify_log(site.api.settings.database_url or "")).findings


async def test_what_is_no_proposal_is_told_and_not_kept(site: Site) -> None:
    form = {"profile": "", "toml": NARROW, "note": "", "against": ""}
    tried: list[tuple[dict[str, Any], int, str]] = [
        ({"toml": "spread = ["}, 422, "not valid TOML"),
        ({"toml": 'version = "x"\n[spread]\nmax_bpss = 1'}, 422, "max_bpss"),
        ({"toml": ""}, 422, "version"),
        ({"toml": "a" * 200_000}, 413, "larger than"),
        ({"profile": "../nobody"}, 422, "no limits file"),
        ({"since": "yesterday"}, 400, "since"),
        ({"fee": "0.1"}, 422, "no number from 0 to 0.01"),
        ({"slippage": "nan"}, 422, "no number from 0 to 0.01"),
        ({"version": "x-1", "read": "9999"}, 422, "no number from 0 to 1000"),
        ({"read": "9"}, 422, "say which version reads"),
    ]
    for changes, status, said in tried:
        answer = await site.post("/ui/limits", form | changes, "operator")
        assert answer.status_code == status, changes
        assert said in answer.text
    assert (await site.post("/ui/limits", form, "reader")).status_code == 403
    assert await LimitsHistory(site.api.service.shadow_log).proposals(9) == []
    for path in ("/ui/limits/1", "/ui/limits/x", "/ui/limits/99999999999999999999"):
        assert (await site.get(path)).status_code == 404


async def test_a_proposal_is_tried_on_the_decisions_that_it_would_judge(site: Site) -> None:
    """A span without decisions says so; a damaged row is named, and it can be tried again."""
    await site.decide("one")
    await site.stored()
    path = await proposed(site, since="2001-01-01", until="2002-01-01")
    assert "No decision is recorded in this span" in (await site.get(path)).text
    again = await site.post(f"{path}/trial", {"against": "recorded"}, "operator")
    assert again.status_code == 303
