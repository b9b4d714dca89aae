"""Hashes of decisions are 32 bytes and nothing else.

A writer of the release before 0027 that goes on beside it writes a hash as 71 letters, and Postgres
takes them for bytes: such rows are mended here, and refused from now on.

Revision: 0028, after 0027
"""

from __future__ import annotations

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

HASHES = {
    "decisions": ("prompt_hash", "limits_hash", "record_hash", "request_hash", "prompt_head"),
    "advices": ("manifest_hash", "calibration"),
    "decision_keys": ("request_hash",),
}
MEND = """
ALTER TABLE {table} DISABLE TRIGGER USER;
UPDATE {table} SET {mended}
WHERE {wrong};
ALTER TABLE {table} ENABLE TRIGGER USER;
ALTER TABLE {table} ADD CONSTRAINT ck_{table}_hashes CHECK ({right});
"""


def upgrade() -> None:
    for table, columns in HASHES.items():
        mended = ", ".join(
            f"{name} = CASE WHEN octet_length({name}) = 71"
            f" THEN advisor_hash_bytes(convert_from({name}, 'UTF8')) ELSE {name} END"
            for name in columns
        )
        wrong = " OR ".join(f"octet_length({name}) = 71" for name in columns)
        right = " AND ".join(f"octet_length({name}) = 32" for name in columns)
        op.execute(MEND.format(table=table, mended=mended, wrong=wrong, right=right))


def downgrade() -> None:
    for table in HASHES:
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT ck_{table}_hashes")
