"""A candidate may come without a score.

Revision: 0012, after 0011
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE decisions ALTER COLUMN score DROP NOT NULL")


def downgrade() -> None:
    """The column stays as it is: rows without a score are never changed, and a release of before
    writes one into each."""
