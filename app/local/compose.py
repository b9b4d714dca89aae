"""Secrets of the compose file, made once: passwords of its servers and tokens of its callers, in
`deploy/secrets`, which only its owner may enter. Needs Python alone: it runs before anything is
installed.

What a container reads as another user is readable by all: the folder around it keeps others out,
and a mount reaches past it. What is there already stays.

usage: python3 -m app.local.compose [FOLDER], where the compose file is
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path("deploy") / "secrets"
DATABASE = "postgresql+psycopg://{}:{}@postgres:5432/advisor"
ROLES = {
    "agent": ["agent", "metrics"],
    "operator": ["operator"],
    "metrics": ["metrics"],
    "notices": ["reader", "metrics"],
}
"""The demo's agent waits for the writer by its metrics; what tells people looks at the service."""


def main(folder: Path) -> int:
    """Make what is missing; 0."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if (folder / "migrate.env").exists():
        add_notices(folder)
        print(f"{folder} holds secrets already: delete it, and the data, to have others")
        return 0
    owner, writer, reader, analyst, valkey = (secrets.token_hex(24) for _ in range(5))
    tokens = {name: new_token(name) for name in ROLES}
    private = {
        "postgres.env": {"POSTGRES_PASSWORD": owner},
        "service.env": {
            "DATABASE_URL": DATABASE.format("advisor_writer", writer),
            "REDIS_URL": f"redis://:{valkey}@valkey:6379/0",
        },
        "drift.env": {"DATABASE_URL": DATABASE.format("advisor_reader", reader)},
        "valkey.env": {"REDISCLI_AUTH": valkey},
        "grafana.env": {"GF_SECURITY_ADMIN_PASSWORD": secrets.token_hex(16)},
        "agent.env": {"ADVISOR_TOKEN": tokens["agent"]},
        "notices.env": {"ADVISOR_TOKEN": tokens["notices"]},
        "operator.env": {"ADVISOR_ADMIN_TOKEN": tokens["operator"]},
        "analyst.env": {"PGUSER": "advisor_analyst", "PGPASSWORD": analyst},
    }
    (folder / "tokens").mkdir(mode=0o755, exist_ok=True)
    (folder / "tokens").chmod(0o755)
    write(folder / "tokens" / "tokens.json", json.dumps(hashed(tokens), indent=2), 0o644)
    write(folder / "metrics_token", tokens["metrics"], 0o644)
    write(folder / "valkey.conf", f"requirepass {valkey}", 0o644)
    for name, variables in private.items():
        write(folder / name, "\n".join(f"{key}={value}" for key, value in variables.items()))
    passwords = {"WRITER": writer, "READER": reader, "ANALYST": analyst}
    lines = [f"DATABASE_URL={DATABASE.format('advisor', owner)}"]
    lines += [f"ADVISOR_{role}_PASSWORD={password}" for role, password in passwords.items()]
    write(folder / "migrate.env", "\n".join(lines))  # Last: it says that the others are there.
    print(f"made secrets in {folder}; Grafana's password is in grafana.env")
    return 0


def add_notices(folder: Path) -> None:
    """The token of who tells people, where secrets were made before there was one."""
    if (folder / "notices.env").exists():
        return
    token, place = new_token("notices"), folder / "tokens" / "tokens.json"
    document = json.loads(place.read_text())
    document["tokens"] += hashed({"notices": token})["tokens"]
    write(place, json.dumps(document, indent=2), 0o644)
    write(folder / "notices.env", f"ADVISOR_TOKEN={token}")


def new_token(name: str) -> str:
    """A token that nobody can guess."""
    return f"advisor.{name}.{secrets.token_urlsafe(32)}"


def hashed(tokens: dict[str, str]) -> dict[str, list[dict[str, object]]]:
    """The file of tokens, as `app/api/tokens.py` reads it."""
    return {
        "tokens": [
            {
                "name": name,
                "roles": ROLES[name],
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "created_at": datetime.now(UTC).isoformat(),
            }
            for name, text in tokens.items()
        ]
    }


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """A file that is never readable by more than `mode` says."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        os.fchmod(descriptor, mode)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
