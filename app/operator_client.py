"""What people and scripts ask of a running service: the trading state, versions, aliases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from re import fullmatch
from time import monotonic, sleep
from typing import Any

import httpx
from shadow_advisor_client.connection import ConfigurationError, Connection
from shadow_advisor_client.identity import AGENT_VARIABLES, bearer, find_token, places

from app.domain.model.aliases import ALIAS_PATTERN, rollback_reason, rollback_target
from app.domain.model.manifest import PRIMARY_ALIAS, VERSION_PATTERN
from app.domain.text import counted

OPERATOR_VARIABLES = ("ADVISOR_ADMIN_TOKEN", *AGENT_VARIABLES)


def addresses(home: Path) -> dict[str, str]:
    """Where everything answers that `advisor up` started last with this home."""
    try:
        lines = (home / "addresses").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


class OperatorError(Exception):
    """The service does not answer an operator, or refuses; the message says what to do."""


def _require(pattern: str, name: str, of: str) -> None:
    """Raises `OperatorError` for a name that none can have: in a path it would ask something
    else."""
    if not fullmatch(pattern, name):
        letters = "small letters" if pattern == ALIAS_PATTERN else "letters"
        raise OperatorError(
            f"{name[:64]!r} is no name of {of}: write {letters}, digits, '.', '_' and '-', and"
            " nothing else; nothing was changed"
        )


class OperatorClient:
    """What operators and their scripts ask of a running service. It waits for the answer, and
    raises `OperatorError`.

    Parameters
    ----------
    token : who asks; by default found as told in `shadow_advisor_client.identity`, of
        `ADVISOR_ADMIN_TOKEN` first.
    timeout_s : a version is loaded and verified before its alias moves.

    Raises `OperatorError` here when the address, a proxy or a file of certificates is wrong.
    """

    def __init__(self, base_url: str, token: str | None = None, timeout_s: float = 120.0) -> None:
        try:
            self._connection = Connection(base_url)
        except ConfigurationError as error:
            raise OperatorError(f"{error}: set --url, or mend the environment") from error
        self.base_url = base_url.rstrip("/")
        self._given = token
        self._timeout_s = timeout_s

    def state(self) -> dict[str, Any]:
        """The trading state in force, and the change that made it so."""
        return self._document("GET", "/state")

    def state_changes(self) -> list[dict[str, Any]]:
        """The newest changes of the trading state on record, the newest first."""
        changes: list[dict[str, Any]] = self._document("GET", "/state/changes")["changes"]
        return changes

    def set_state(self, state: str, reason: str, by: str) -> dict[str, Any]:
        """Change the trading state. HALTED refuses every trade at once."""
        body = {"state": state, "reason": reason, "changed_by": by}
        return self._document("PUT", "/state", body)

    def register(self, model_version: str) -> dict[str, Any]:
        """Have a published version verified and made known."""
        _require(VERSION_PATTERN, model_version, "a version")
        return self._document("PUT", f"/models/{model_version}")

    def aliases(self) -> dict[str, Any]:
        """`aliases`: where each points; `history`: every move, newest first."""
        return self._document("GET", "/aliases")

    def moved_at(self, alias: str) -> str:
        """When an alias was moved last; empty when it never was."""
        return str(self.aliases()["aliases"].get(alias, {}).get("changed_at", ""))

    def move_alias(
        self, alias: str, model_version: str, reason: str, by: str, *, seen: str | None = None
    ) -> dict[str, Any]:
        """Point an alias at a version; `before` is where it pointed. What is served follows.
        Refused when it was moved since `seen`, which `moved_at` told."""
        _require(ALIAS_PATTERN, alias, "an alias")
        body = {"model_version": model_version, "reason": reason, "changed_by": by}
        if seen is not None:
            body["seen"] = seen
        return self._document("PUT", f"/aliases/{alias}", body)

    def roll_back(self, alias: str, reason: str, by: str) -> dict[str, Any]:
        """Point an alias at the version that stood before its present one; twice in a row goes two
        versions back."""
        moves = [move for move in self.aliases()["history"] if move["alias"] == alias]
        target = rollback_target(moves[::-1])
        if target is None:
            way = f"; `advisor alias {alias} none` lets it name no version"
            raise OperatorError(
                f"the alias {alias} stood nowhere else before: there is nothing to go back to"
                + (way if moves and alias != PRIMARY_ALIAS else "")
            )
        reason = rollback_reason(moves[0]["model_version"], reason)
        return self.move_alias(alias, target, reason, by, seen=moves[0]["changed_at"])

    def limits(self) -> dict[str, Any]:
        """`in_force`: the limits that judge, by profile; `history`: the newest adoptions of each,
        the newest first."""
        return self._document("GET", "/limits")

    def adopt_limits(
        self, toml: str, reason: str, by: str, *, profile: str = "", seen: str
    ) -> dict[str, Any]:
        """Let limits judge in the place of a file, and of those in force with the hash `seen`."""
        body = {"toml": toml, "profile": profile, "seen": seen}
        return self._document("PUT", "/limits", body | {"reason": reason, "changed_by": by})

    def roll_back_limits(
        self, reason: str, by: str, *, profile: str = "", seen: str
    ) -> dict[str, Any]:
        """Let those judge that did before, at last the file."""
        body = {"rollback": True, "profile": profile, "seen": seen}
        return self._document("PUT", "/limits", body | {"reason": reason, "changed_by": by})

    def readiness(self) -> dict[str, Any]:
        """Each dependency, the versions being served, and `status`: ready, degraded, unready."""
        return self._document("GET", "/readyz", accepted=(200, 503))

    def instance(self) -> str:
        """Which instance answers: what `advisor up` gave its own service; empty for others."""
        return str(self._document("GET", "/healthz").get("instance", ""))

    def metrics(self) -> dict[str, float]:
        """The service's own metrics: `name{labels}` -> value."""
        lines = self._ask("GET", "/metrics").text.splitlines()
        pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        try:
            return {series: float(value) for series, _, value in pairs}
        except ValueError as error:
            raise self._not_the_advisor() from error

    def wait_for_writer(
        self, within_s: float, pause: Callable[[], object] = lambda: sleep(0.2)
    ) -> None:
        """Until everything that was answered is in Postgres. A service that is just being started
        again is waited for."""
        end = monotonic() + within_s
        while (problem := self._unwritten()) is not None:
            if monotonic() > end:
                raise OperatorError(problem)
            pause()

    def _unwritten(self) -> str | None:
        """Why not everything is in Postgres; None when it is."""
        try:
            metrics = self.metrics()
            waiting = metrics["advisor_journal_backlog"] + metrics["advisor_spool_depth"]
        except OperatorError as error:
            return str(error)
        except KeyError:
            return str(self._not_the_advisor())
        if waiting == 0:
            return None
        told = counted(round(waiting), "event waits", "events wait")
        return f"{told} for the writer: start `advisor writer`, then try again"

    def _not_the_advisor(self) -> OperatorError:
        return OperatorError(f"{self.base_url} answers, but is not the advisor: set --url")

    def _document(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        accepted: Collection[int] = (),
    ) -> dict[str, Any]:
        answer = self._ask(method, path, body)
        try:
            document: dict[str, Any] = dict(answer.json())
        except (ValueError, TypeError) as error:
            raise self._not_the_advisor() from error
        if answer.is_error and answer.status_code not in accepted:
            detail = document.get("detail", answer.text)
            if answer.status_code == 401:
                looked = places(self._given, self.base_url, "operator", OPERATOR_VARIABLES)
                detail = f"{detail}; {looked}"
            raise OperatorError(
                f"{self.base_url} refuses {method} {path} ({answer.status_code}): {detail}"
            )
        return document

    def _token(self) -> str | None:
        return self._given or find_token(self.base_url, "operator", OPERATOR_VARIABLES)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            with self._connection.open(self._timeout_s) as http:
                return http.request(method, path, json=body, headers=bearer(self._token()))
        except httpx.HTTPError as error:
            raise OperatorError(
                f"{self._connection} does not answer ({error or type(error).__name__}): is the"
                " service running? start it with `advisor up`, or set --url"
            ) from error
