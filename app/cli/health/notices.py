"""The commands `notices ...`: people are told of halts, promotions, losses and alerts."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from app.cli.health.addresses import Notice, addresses_of
from app.cli.options import AsJson, Url, finite, group, operator, say, tell
from app.settings import read_settings

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
def notices_test(as_json: AsJson = False) -> None:
    """Send one notice to every address of ADVISOR_NOTICES; exit 1 when one does not take it."""
    from app.cli.health.noticing import Address

    notice = Notice("a test of shadow-advisor", "Whoever reads this will be told of halts.")
    addresses = [Address(*each) for each in addresses_of(read_settings()).items()]
    for address in addresses:
        address.waiting.append((0.0, notice))
        address.send(0.0)
    away = [address for address in addresses if address.waiting]
    if as_json:
        tell({each.name: {"took": not each.waiting, "why": each.why or None} for each in addresses})
    else:
        for address in away:
            say(f"{address.name} did not take it: {address.why}")
        if not away:
            say("every address took it")
    raise typer.Exit(1 if away else 0)
