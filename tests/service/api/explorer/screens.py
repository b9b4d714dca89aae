"""Pictures of the main pages of a running service, for README and for whoever looks at a change:
`make screenshots` while `make demo` stays."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.service.api.explorer.test_browser import CHROMIUM

WIDE, PHONE = (1280, 860), (390, 844)
QUALITY = 82


def come_in(page: Page, token: str) -> None:
    page.goto("/ui")
    if "/ui/login" in page.url:
        page.get_by_label("Token of a reader or an operator").fill(token)
        page.keyboard.press("Enter")
        page.wait_for_load_state("networkidle")


def keep(page: Page, path: str, to: Path) -> None:
    """What a window shows of a page, as WebP."""
    page.goto(path, wait_until="networkidle")
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    to.parent.mkdir(parents=True, exist_ok=True)
    picture.save(to, "WEBP", quality=QUALITY)
    print(f"{to}: {to.stat().st_size // 1024} kB")


def disagreement(page: Page) -> str:
    """The address of a decision in which agent and advice are apart, or else of the newest."""
    for query in ("?disagree=1&outcome=tp2", "?disagree=1", ""):
        page.goto(f"/ui/decisions{query}", wait_until="networkidle")
        links = page.locator("tbody td a")
        if links.count():
            return str(links.first.get_attribute("href"))
    raise SystemExit("no decision is recorded")


def proposal(page: Page) -> str:
    """The address of a proposal that was tried: a tighter spread, a closer cost."""
    page.goto("/ui/limits", wait_until="networkidle")
    text = page.locator("#toml").input_value()
    page.locator("#toml").fill(text.replace("max_share_of_risk = 1.0", "max_share_of_risk = 0.25"))
    page.get_by_label("What for").fill("costs may take a quarter of the risk")
    page.get_by_role("button", name="Try them on the record").click()
    page.wait_for_url("**/ui/limits/*")
    page.get_by_role("heading", name="Decisions that change").wait_for(timeout=120_000)
    return page.url


def version(page: Page) -> str:
    """The address of what is served as primary, with everything that is known of it."""
    page.goto("/ui/models", wait_until="networkidle")
    return f"{page.locator('tbody td a').first.get_attribute('href')}?days=all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8321")
    parser.add_argument("--token", type=Path, default=Path("var/tokens/operator"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    token = asked.token.read_text().strip()
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, size, scheme in (
            ("light", WIDE, "light"),
            ("dark", WIDE, "dark"),
            ("phone", PHONE, "light"),
        ):
            context = browser.new_context(
                base_url=asked.url,
                reduced_motion="reduce",
                viewport={"width": size[0], "height": size[1]},
                color_scheme="dark" if scheme == "dark" else "light",
            )
            page = context.new_page()
            come_in(page, token)
            shown = {
                "overview": "/ui?days=all",
                "decisions": "/ui/decisions",
                "decision": disagreement(page),
            }
            if name == "light":
                shown |= {"proposal": proposal(page), "models": "/ui/models?days=all"}
                shown |= {"version": version(page), "drift": "/ui/drift"}
            for what, path in shown.items():
                keep(page, path, asked.out / f"{what}-{name}.webp")
        browser.close()


if __name__ == "__main__":
    main()
