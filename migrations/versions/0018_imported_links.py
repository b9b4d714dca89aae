"""Imported trades have links, as every other row.

Revision: 0018, after 0017
"""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

LINK_LOCK = 0x5AD1
EARLIER = """
INSERT INTO event_links (producer, seq, fate, previous, kind, key, claim, payload)
SELECT 'before-0006', told.seq + row_number() OVER (ORDER BY import_id), 'event', '',
       'imported_trade', import_id::text, source, ''
FROM imported_trades t, (
    SELECT coalesce(max(seq), 0) AS seq FROM event_links WHERE producer = 'before-0006'
) told
WHERE NOT EXISTS (
    SELECT FROM event_links l WHERE l.kind = 'imported_trade' AND l.key = t.import_id::text
)
"""


def upgrade() -> None:
    op.execute(f"SELECT pg_advisory_xact_lock({LINK_LOCK})")
    op.execute(EARLIER)


def downgrade() -> None:
    """Links stay: the log only grows, and a release before this one passes them over."""
