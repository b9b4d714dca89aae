"""`python -m shadow_advisor_client check FILE.json --url URL`: what would become of a request."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .client import AdvisorClient
from .connection import ConfigurationError

REFUSED, NO_ANSWER = 1, 2


def main() -> int:
    """0: it would be decided on; 1: it would be refused; 2: there is no answer."""
    parser = argparse.ArgumentParser(prog="python -m shadow_advisor_client", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="a dry run: every field, and what rules would lack")
    check.add_argument("file", help="a request as JSON; - reads standard input")
    check.add_argument("--url", default="http://127.0.0.1:8321", help="where the service answers")
    check.add_argument("--token", help="who asks; by default as the client finds it")
    given = parser.parse_args()
    try:
        text = sys.stdin.read() if given.file == "-" else Path(given.file).read_text("utf-8")
        request = json.loads(text)
        client = AdvisorClient(given.url, token=given.token, exit_budget_s=0)
    except (OSError, ValueError, ConfigurationError) as error:
        print(f"{given.file}: {error}", file=sys.stderr)
        return NO_ANSWER
    answer = client.check(request)
    print(answer)
    if answer.error is not None:
        return NO_ANSWER
    return 0 if answer.acceptable else REFUSED


if __name__ == "__main__":
    sys.exit(main())
