"""The explorer in a real browser: come in, look, change; no error, nothing that a screen reader or
a keyboard cannot reach, nothing wider than a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from app.advising.serving import Models
from app.api.tokens import TokenFile
from app.domain.model.manifest import MANIFEST_NAME
from app.domain.principal import Role
from app.policy.scripted import SCRIPTED_MANIFEST, ScriptedPolicy
from app.policy.versions.store import report_beside
from tests.service.api.explorer.test_decision import bars
from tests.service.running import ROOT, Running, drained, request, running, settings_for
from tests.training.support.drifting import looked, window
from training.config.judging import DriftConfig
from training.live.drift.kept import keep

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
NARROW = (ROOT / "limits.toml").read_text().replace("max_bps = 10.0", "max_bps = 1.0")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}


class Visit:
    """A running service, a browser, and an operator's token."""

    def __init__(self, api: Running, browser: Browser, token: str) -> None:
        self.api = api
        self.browser = browser
        self.token = token
        self.complaints: list[str] = []

    async def page(self, width: int = 1280, scheme: str = "light") -> Page:
        context = await self.browser.new_context(
            base_url=self.api.url,
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        page = await context.new_page()
        page.on("console", lambda said: self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return page

    async def come_in(self, page: Page, path: str = "/ui") -> None:
        await page.goto(path)
        assert not await page.locator("[hidden]").first.is_visible(), "for password managers alone"
        await page.get_by_label("Token of a reader or an operator").fill(self.token)
        await page.keyboard.press("Enter")
        await page.wait_for_url(self.api.url.rstrip("/") + path)


@pytest.fixture
async def visit(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Visit]:
    token = TokenFile(tmp_path / "tokens.json").create("ops", [Role.OPERATOR, Role.AGENT])
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    bars(tmp_path / "bars", "BTCUSDT_1h.parquet", now - timedelta(hours=99), 120, 3600)
    settings = settings_for(database_url, valkey_url, tmp_path, open=None)
    keep(settings.looks_folder, looked(window(1, 1200), window(2, 300, moved=1.0)), DriftConfig())
    async with (
        running(settings, Models(ScriptedPolicy(["A", "H"]))) as api,
        async_playwright() as started,
    ):
        api.client.headers["Authorization"] = f"Bearer {token}"
        for i in range(3):
            decision = (
                await api.advise(request(f"r{i}", candidate__news_summary="x" * 300))
            ).json()
            path = f"/decisions/{decision['decision_id']}"
            await api.client.put(f"{path}/agent-action", json={"decision": True})
            lost = {"arm": "agent", "outcome": "sl", "source": "reported", "net_pnl": -3.0}
            await api.client.put(f"{path}/outcome", json=lost)
        await drained(settings)
        browser = await started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield Visit(api, browser, token)
        finally:
            await browser.close()


async def test_every_page_is_drawn_reachable_and_as_wide_as_its_window(visit: Visit) -> None:
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = await visit.page(width, scheme)
        await visit.come_in(page)
        paths = ["/ui", "/ui/decisions", "/ui/models", "/ui/state"]
        versions = "/ui/models/scripted-1?days=all"
        await page.goto("/ui/decisions")
        link = page.locator("tbody a").first
        paths.append(str(await link.get_attribute("href")))
        await page.goto("/ui/limits")
        await page.get_by_label("Limits, TOML").fill(NARROW)
        await page.get_by_role("button", name="Try them on the record").click()
        await page.wait_for_url("**/ui/limits/*")
        await page.get_by_role("heading", name="Decisions that change").wait_for()
        paths += ["/ui/limits", page.url, versions, "/ui/drift"]
        for path in paths:
            await page.goto(path, wait_until="networkidle")
            assert await page.locator("h1").count() == 1, path
            charts = page.locator("[data-options]")
            assert await page.locator("[data-options] canvas").count() == await charts.count(), path
            wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{path} is {wide} px wider than a window of {width}"
            found = await Axe().run(page, options=RULES)
            assert found.violations_count == 0, f"{path}, {scheme}\n{found.generate_report()}"
        await page.goto(paths[4], wait_until="networkidle")
        assert await page.locator("[data-options]").count() == 2, "candles and probabilities"
    assert visit.complaints == []


async def test_a_report_runs_its_own_scripts_within_a_page_and_reaches_nothing_of_it(
    visit: Visit,
) -> None:
    """What training's page has: a script in it, and a table that it sorts."""
    folder = visit.api.settings.models_dir / "scripted-1"
    folder.mkdir(parents=True)
    (folder / MANIFEST_NAME).write_text(json.dumps(SCRIPTED_MANIFEST.as_json()))
    report_beside(folder).write_text(
        "<!doctype html><html lang=en><title>Report</title><h1>Report</h1><p id=said></p><script>"
        "let said = 'ran, '; try { said += parent.document.title } catch { said += 'apart' }"
        "document.getElementById('said').textContent = said</script></html>"
    )
    await visit.api.service.shadow_log.register_model(SCRIPTED_MANIFEST)
    page = await visit.page()
    await visit.come_in(page, "/ui/models/scripted-1")
    await page.locator("iframe.report").scroll_into_view_if_needed()
    said = page.frame_locator("iframe.report").locator("#said")
    await expect(said).to_have_text("ran, apart")
    await page.goto("/ui/models/scripted-1/report")
    await expect(page.locator("#said")).to_contain_text("ran, ")
    assert await page.evaluate("origin") == "null"
    assert visit.complaints == []


async def test_the_interfaces_are_drawn_without_the_internet(visit: Visit) -> None:
    context = await visit.browser.new_context(
        base_url=visit.api.url, http_credentials={"username": "me", "password": visit.token}
    )
    page, asked = await context.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    await page.goto("/docs")
    await page.locator(".opblock", has_text="/advise").first.wait_for()
    assert [url for url in asked if not url.startswith((visit.api.url, "data:"))] == []


async def test_an_operator_halts_with_the_keyboard_alone(visit: Visit) -> None:
    page = await visit.page()
    await visit.come_in(page, "/ui/state")
    await page.get_by_label("HALTED").focus()
    await page.keyboard.press("Space")
    await page.keyboard.press("Tab")
    await page.keyboard.type("drill")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Space")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("HALTED")
    assert visit.api.service.controls.state.value == "HALTED"
    assert visit.complaints == []


async def test_limits_come_from_a_file_and_are_adopted_with_the_keyboard(
    visit: Visit, tmp_path: Path
) -> None:
    file = tmp_path / "narrow.toml"
    file.write_text(NARROW)
    page = await visit.page()
    await visit.come_in(page, "/ui/limits")
    await page.get_by_label("A file").set_input_files(file)
    await expect(page.get_by_label("Limits, TOML")).to_have_value(NARROW)
    await page.get_by_role("button", name="Try them on the record").focus()
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/ui/limits/*")
    await page.get_by_role("heading", name="Decisions that change").wait_for()
    await page.get_by_label("Reason").focus()
    await page.keyboard.type("spreads")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Space")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await page.wait_for_url(visit.api.url.rstrip("/") + "/ui/limits")
    assert visit.api.service.controls.limits.spread.max_bps == 1.0
    assert visit.complaints == []


async def test_a_view_is_kept_in_this_browser_and_forgotten(visit: Visit) -> None:
    page = await visit.page()
    await visit.come_in(page, "/ui/decisions?symbol=BTCUSDT&status=advised")
    await page.get_by_role("button", name="Keep this view").click()
    await page.goto("/ui/decisions")
    link = page.get_by_role("link", name="symbol BTCUSDT, status advised")
    await expect(link).to_have_attribute("href", "/ui/decisions?symbol=BTCUSDT&status=advised")
    found = await Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()
    await page.get_by_role("button", name="Forget symbol BTCUSDT, status advised").click()
    await expect(link).to_have_count(0)
    assert visit.complaints == []


async def test_whoever_leaves_has_to_come_in_again(visit: Visit) -> None:
    page = await visit.page()
    await visit.come_in(page, "/ui/models")
    await page.get_by_role("button", name="Leave").click()
    await page.wait_for_url(visit.api.url.rstrip("/") + "/ui/login")
    await page.goto("/ui/models")
    assert page.url.endswith("/ui/login?next=/ui/models")
