"""The commands `notices ...`: people are told of halts, promotions, losses and alerts."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import Url, finite, group, operator, say
from app.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from app.cli.health.noticing import Notice, Takes

FILE = "file:"
"""An address that begins like this is a file, which gets a line of JSON a notice."""

notices_app = group("Telling people, by chat, mail or webhook, what happens to the service.")


@notices_app.command("watch")
def notices_watch(
    every: Annotated[
        float, typer.Option(min=1, callback=finite, help="Seconds between looks.")
    ] = 10.0,
    host: Annotated[str, typer.Option(help="Address to take alerts at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port of POST /alerts and GET /metrics.")
    ] = 8324,
    url: Url = None,
) -> None:
    """Tell the addresses of ADVISOR_NOTICES when trading is halted, a version is promoted or rolled
    back, limits are adopted, events are missing, the service is away; and what Alertmanager posts
    to /alerts. Stays until Ctrl-C."""
    import uvicorn

    from app.api.tokens import Tokens, require_somebody
    from app.cli.health.noticing import Outbox, Watch, receiver, watching

    settings = read_settings()
    outbox = Outbox(addresses_of(settings), settings.home / "notices-waiting.json")
    tokens = Tokens(*settings.who_may)
    require_somebody(tokens, host)
    watch = Watch(operator(url), outbox, settings.home / "notices.json")

    async def both() -> None:
        app = receiver(outbox, tokens, settings.runbooks)
        server = uvicorn.Server(uvicorn.Config(app, host, port, log_level=settings.log_level))
        looking = asyncio.create_task(watching(watch, every))
        try:
            await server.serve()
        finally:
            looking.cancel()

    asyncio.run(both())


@notices_app.command("test")
def notices_test() -> None:
    """Send one notice to every address of ADVISOR_NOTICES; exit 1 when one does not take it."""
    from app.cli.health.noticing import Address, Notice

    notice = Notice("a test of shadow-advisor", "Whoever reads this will be told of halts.")
    addresses = [Address(*each) for each in addresses_of(read_settings()).items()]
    for address in addresses:
        address.waiting.append((0.0, notice))
        address.send(0.0)
    away = [address.name for address in addresses if address.waiting]
    for name in away:
        say(f"{name} did not take it")
    if away:
        raise typer.Exit(1)
    say("every address took it")


def addresses_of(settings: Settings) -> dict[str, Takes]:
    """Every address of the settings, by its place and kind. Raises `SettingsError`."""
    written = settings.notices.split()
    if not written:
        raise SettingsError(
            "ADVISOR_NOTICES names no address; separate them by spaces, such as"
            " tgram://TOKEN/CHAT slack://TOKEN json://host/path file:/path/of/notices.jsonl"
        )
    return {
        f"address {number} ({address.partition(':')[0][:20]})": _address(number, address)
        for number, address in enumerate(written, 1)
    }


def _address(number: int, address: str) -> Takes:
    if address == FILE:
        raise SettingsError(f"ADVISOR_NOTICES: `{FILE}` names no file; write {FILE}/path/of/it")
    if address.startswith(FILE):
        return partial(_append, Path(address.removeprefix(FILE)))
    return _by_apprise(number, address)


def _append(path: Path, notice: Notice) -> bool:
    """A line of JSON more, which is on disk when this returns."""
    line = {"time": datetime.now(UTC).isoformat(), **notice._asdict()}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return True


def _by_apprise(number: int, address: str) -> Takes:
    try:
        from apprise import Apprise, NotifyType
    except ImportError as error:
        raise SettingsError(
            "notices need apprise: pip install 'shadow-advisor[notices]'"
        ) from error
    service = Apprise()
    if not service.add(address):
        raise SettingsError(f"ADVISOR_NOTICES: apprise cannot read address {number}")

    def take(notice: Notice) -> bool:
        return bool(
            service.notify(
                title=notice.title, body=notice.body, notify_type=NotifyType(notice.level)
            )
        )

    return take
