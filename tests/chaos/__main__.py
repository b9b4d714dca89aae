"""`make chaos`: rounds of faults, a line each, and a table."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import structlog

from tests.chaos.faults import FAULTS
from tests.chaos.latency import latency
from tests.chaos.rounds import Round, rounds, summary

LATENCY_REQUESTS = 1000


def main() -> int:
    """1 when a round violated a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=108)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", action="append", default=[], help="this one only; repeatable")
    parser.add_argument("--keep", type=Path, help="directory to leave logs and data in")
    parser.add_argument(
        "--latency", type=int, metavar="TURNS", help="measure /advise with Postgres away instead"
    )
    parser.add_argument("--list", action="store_true", help="name the faults")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(fault.name for fault in FAULTS))
        return 0
    if arguments.latency:
        print(asyncio.run(latency(arguments.latency, LATENCY_REQUESTS)))
        return 0
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    done = asyncio.run(_run(arguments))
    print(summary(done))
    return int(any(each.violations for each in done))


async def _run(arguments: argparse.Namespace) -> list[Round]:
    done = []
    asked = (arguments.rounds, arguments.seed, arguments.fault, arguments.keep)
    async for each in rounds(*asked):
        print(each.line(), flush=True)
        done.append(each)
    return done


if __name__ == "__main__":
    sys.exit(main())
