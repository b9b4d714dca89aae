"""Accepted requests among the links, and those of them that were lost, are found by an index.

Revision: 0019, after 0018
"""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE INDEX ix_event_links_fate_id ON event_links (fate, id)"
        " WHERE fate IN ('accepted', 'forgotten')"
    )


def downgrade() -> None:
    op.execute("DROP INDEX ix_event_links_fate_id")
