"""What retention dropped.

Revision: 0003, after 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dropped_months",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("decisions", sa.BigInteger, nullable=False),
        sa.Column(
            "dropped_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name="pk_dropped_months"),
    )
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON dropped_months "
        "FOR EACH ROW EXECUTE FUNCTION advisor_refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER never_truncated BEFORE TRUNCATE ON dropped_months "
        "FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change()"
    )


def downgrade() -> None:
    op.drop_table("dropped_months")
