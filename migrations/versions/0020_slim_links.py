"""Links in less than half of the room: hashes as bytes, a producer by its number, a claim only
where it is not the key, and an index of the keys' hashes.

`event_links` is a view that says what the table of that name said, so that every proof reads the
same values in the same order. Earlier links are moved as they are, ids included.

Revision: 0020, after 0019
"""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

# What is no hash becomes bytes that read as another one: it never fits, as before.
FUNCTIONS = """
CREATE FUNCTION advisor_hash_bytes(said text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN length(said) = 71 AND starts_with(said, 'sha256:')
                 AND translate(substr(said, 8), '0123456789abcdef', '') = ''
            THEN decode(substr(said, 8), 'hex')
            ELSE convert_to(said, 'UTF8') END;
CREATE FUNCTION advisor_hash_text(kept bytea) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(kept) = 0 THEN '' ELSE 'sha256:' || encode(kept, 'hex') END;
GRANT EXECUTE ON FUNCTION advisor_hash_bytes, advisor_hash_text TO advisor_writer, advisor_reader;
"""
TABLES = """
CREATE TABLE link_producers (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    name TEXT NOT NULL,
    CONSTRAINT pk_link_producers PRIMARY KEY (id),
    CONSTRAINT uq_link_producers_name UNIQUE (name)
);
CREATE TABLE links (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    seq BIGINT NOT NULL,
    producer_id INTEGER NOT NULL,
    fate TEXT NOT NULL,
    kind TEXT NOT NULL,
    previous BYTEA NOT NULL,
    key TEXT NOT NULL,
    other_claim TEXT NOT NULL,
    payload BYTEA NOT NULL
);
"""
MOVED = """
LOCK TABLE event_links IN ACCESS EXCLUSIVE MODE;
INSERT INTO link_producers (name) SELECT DISTINCT producer FROM event_links ORDER BY producer;
INSERT INTO links (id, seq, producer_id, fate, kind, previous, key, other_claim, payload)
OVERRIDING SYSTEM VALUE
SELECT l.id, l.seq, p.id, l.fate, l.kind, advisor_hash_bytes(l.previous), l.key,
       CASE WHEN l.claim = l.key THEN '' ELSE l.claim END, advisor_hash_bytes(l.payload)
FROM event_links l JOIN link_producers p ON p.name = l.producer ORDER BY l.id;
SELECT setval(pg_get_serial_sequence('links', 'id'),
              nextval(pg_get_serial_sequence('event_links', 'id')), false);
DROP TABLE event_links;
"""
INDEXES = """
ALTER TABLE links ADD CONSTRAINT pk_links PRIMARY KEY (id);
ALTER TABLE links ADD CONSTRAINT uq_links_producer_id_seq_fate UNIQUE (producer_id, seq, fate);
CREATE INDEX ix_links_key ON links USING hash (key);
CREATE INDEX ix_links_fate_id ON links (fate, id) WHERE fate IN ('accepted', 'forgotten');
"""
VIEW = """
CREATE VIEW event_links AS
SELECT l.id, p.name AS producer, l.seq, l.fate, advisor_hash_text(l.previous) AS previous, l.kind,
       l.key, CASE WHEN l.other_claim = '' THEN l.key ELSE l.other_claim END AS claim,
       advisor_hash_text(l.payload) AS payload
FROM links l LEFT JOIN link_producers p ON p.id = l.producer_id;
COMMENT ON VIEW event_links IS 'Every numbered event as its producer linked it, from links';
GRANT SELECT ON links, link_producers, event_links TO advisor_writer, advisor_reader;
GRANT INSERT ON links, link_producers TO advisor_writer;
"""
KEPT = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION advisor_refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION advisor_refuse_change();
"""
EARLIER = """
LOCK TABLE links IN ACCESS EXCLUSIVE MODE;
ALTER VIEW event_links RENAME TO slim_links;
CREATE TABLE event_links (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    producer TEXT NOT NULL,
    seq BIGINT NOT NULL,
    fate TEXT NOT NULL,
    previous TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    claim TEXT NOT NULL,
    payload TEXT NOT NULL
);
INSERT INTO event_links (id, producer, seq, fate, previous, kind, key, claim, payload)
OVERRIDING SYSTEM VALUE
SELECT id, coalesce(producer, ''), seq, fate, previous, kind, key, claim, payload
FROM slim_links ORDER BY id;
SELECT setval(pg_get_serial_sequence('event_links', 'id'),
              nextval(pg_get_serial_sequence('links', 'id')), false);
DROP VIEW slim_links;
DROP TABLE links;
DROP TABLE link_producers;
DROP FUNCTION advisor_hash_text;
DROP FUNCTION advisor_hash_bytes;
ALTER TABLE event_links ADD CONSTRAINT pk_event_links PRIMARY KEY (id);
ALTER TABLE event_links
    ADD CONSTRAINT uq_event_links_producer_seq_fate UNIQUE (producer, seq, fate);
CREATE INDEX ix_event_links_key ON event_links (key);
CREATE INDEX ix_event_links_fate_id ON event_links (fate, id)
    WHERE fate IN ('accepted', 'forgotten');
GRANT SELECT ON event_links TO advisor_writer, advisor_reader;
GRANT INSERT ON event_links TO advisor_writer;
"""


def upgrade() -> None:
    for statements in (FUNCTIONS, TABLES, MOVED, INDEXES, VIEW):
        op.execute(statements)
    for table in ("links", "link_producers"):
        op.execute(KEPT.format(table=table))


def downgrade() -> None:
    op.execute(EARLIER)
    op.execute(KEPT.format(table="event_links"))
