"""`advisor-train`: the offline side. `advisor-train COMMAND --help` explains each command.

Exit status: 0, done; 2, it could not be done, or was asked wrongly: one line says why. As of
`advisor`.
"""

from __future__ import annotations

import typer

from training.cli.bars import bars
from training.cli.certify import certify
from training.cli.drift import drift
from training.cli.evaluate import evaluate, promote, walk_forward
from training.cli.options import expected_failures
from training.cli.paper import paper, resolve_outcomes
from training.cli.rebuild import rebuild
from training.cli.refresh import refresh
from training.cli.registry import list_versions, publish_policy, publish_rivals, roll_back

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown", help=__doc__
)
app.command()(rebuild)
app.command()(evaluate)
app.command()(walk_forward)
app.command()(paper)
app.command("resolve")(resolve_outcomes)
app.command()(bars)
app.command()(certify)
app.command()(drift)
app.command()(refresh)
app.command("publish")(publish_policy)
app.command("publish-rivals")(publish_rivals)
app.command()(promote)
app.command("rollback")(roll_back)
app.command("versions")(list_versions)


@app.callback()
def train() -> None:
    """The offline side of shadow-advisor: rebuild the model, judge it, publish it; paper trading,
    outcomes, drift."""


def main() -> None:
    """Entry point: expected failures are one line on stderr, with status 2."""
    with expected_failures("advisor-train"):
        app()


if __name__ == "__main__":
    main()
