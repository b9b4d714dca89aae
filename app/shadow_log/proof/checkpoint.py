"""Checkpoints: signed statements about all links up to one, kept where the database does not reach.

The tree (`app/domain/record/tree.py`) is over the links in order of `id`. Kinds are counted beside
it: a link with fate `event` is a row, or a decision with its rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain.canonical import canonical_json
from app.domain.errors import ShadowLogUnavailable
from app.domain.record.link import Fate, Linked
from app.domain.record.tree import Tree, path
from app.shadow_log.appending import links
from app.shadow_log.database import connect, translated_errors
from app.shadow_log.proof.findings import Fault, VerifyReport
from app.shadow_log.proof.places import CheckpointError, Place
from app.shadow_log.schema import tables

log = structlog.get_logger()
Document = dict[str, Any]
PATIENCE = "2s"
"""How long a checkpoint waits for appends that are under way, which hold up those behind it."""


class Checkpointer:
    """Signs what was added, and keeps the tree between two checkpoints. Several writers may each
    have one."""

    def __init__(self, engine: AsyncEngine, key: Ed25519PrivateKey, place: Place) -> None:
        self._engine = engine
        self._key = key
        self._place = place
        self._tree = Tree()
        self._counts: Counter[str] = Counter()
        self._newest = 0
        self._last: Linked | None = None
        self._written = 0

    async def checkpoint(self) -> Document | None:
        """Sign and write one, unless nothing was added. Raises `ShadowLogUnavailable` or
        `CheckpointError`."""
        with translated_errors():
            async with self._engine.begin() as connection:
                await connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
                await links.exclusive(connection)
                newest = await connection.scalar(select(func.max(tables.links.c.id))) or 0
            async with self._engine.connect() as connection:
                if not await self._holds_last(connection):
                    log.error("the log lacks links that it held: its tree is made anew")
                    self._forget()
                async for number, linked in links_after(connection, self._newest, newest):
                    self._tree.add(linked.leaf())
                    self._counts[_counted(linked)] += 1
                    self._newest, self._last = number, linked
        if self._tree.size == self._written:
            return None
        document = self._signed()
        await self._place.add(self._tree.size, orjson.dumps(document))
        self._written = self._tree.size
        return document

    async def _holds_last(self, connection: AsyncConnection) -> bool:
        """Whether the link that was added last is still there: an older backup lacks it."""
        if self._last is None:
            return True
        there = [link async for _, link in links_after(connection, self._newest - 1, self._newest)]
        return there == [self._last]

    def _forget(self) -> None:
        self._tree, self._counts = Tree(), Counter()
        self._newest, self._last, self._written = 0, None, 0

    def _signed(self) -> Document:
        public = self._key.public_key().public_bytes_raw()
        document: Document = {
            "at": datetime.now(UTC).isoformat(),
            "counts": dict(self._counts),
            "key": public.hex(),
            "root": self._tree.root().hex(),
            "size": self._tree.size,
        }
        return document | {"signature": self._key.sign(canonical_json(document)).hex()}


def _counted(linked: Linked) -> str:
    return linked.kind if linked.fate == Fate.EVENT else f"{linked.fate} {linked.kind}"


async def links_after(
    connection: AsyncConnection, after: int, until: int | None = None
) -> AsyncIterator[tuple[int, Linked]]:
    """Links in the order of the tree, with their ids."""
    c = tables.event_links.c
    query = select(c.id, *(c[name] for name in links.COLUMNS)).where(c.id > after).order_by(c.id)
    if until is not None:
        query = query.where(c.id <= until)
    async for row in await connection.stream(query):
        values = row._mapping
        yield row.id, Linked(**{name: values[name] for name in links.COLUMNS})


def key_at(place: Path) -> Ed25519PrivateKey:
    """The signing key; made when there is none, readable by its owner only. Raises
    `CheckpointError`."""
    try:
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            made = Ed25519PrivateKey.generate()
            pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
        key = load_pem_private_key(place.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint key {place}: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise CheckpointError(f"checkpoint key {place}: not an Ed25519 key")
    return key


def read_checkpoints(place: Place, key: str | None = None) -> tuple[list[Document], int]:
    """Checkpoints by size, all of one key, which is `key` if one is given; and how many lines are
    cut, as a crash leaves them. Raises `CheckpointError` when one is not what was signed."""
    documents: list[Document] = []
    cut = 0
    for number, line in enumerate(place.lines(), 1):
        try:
            document = orjson.loads(line)
        except ValueError:
            cut += 1
            continue
        _require_signed(document, key or (documents[0]["key"] if documents else None), number)
        documents.append(document)
    return sorted(documents, key=lambda document: int(document["size"])), cut


def _require_signed(document: Document, key: str | None, number: int) -> None:
    try:
        signed = {name: value for name, value in document.items() if name != "signature"}
        if key not in (None, document["key"]):
            raise CheckpointError(f"checkpoint {number}: another key signed it")
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(document["key"]))
        public.verify(bytes.fromhex(document["signature"]), canonical_json(signed))
    except (InvalidSignature, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {number}: the signature does not fit") from error


async def check_log(url: str, checkpoints: Sequence[Document], report: VerifyReport) -> None:
    """`check_checkpoints` of the log at a URL. Raises `ShadowLogUnavailable`."""
    engine = connect(url, patience_s=None)
    try:
        await check_checkpoints(engine, checkpoints, report)
    finally:
        await engine.dispose()


async def check_checkpoints(
    engine: AsyncEngine, checkpoints: Sequence[Document], report: VerifyReport
) -> None:
    """Hold the log against each checkpoint: the links up to its size are what they were."""
    tree, counts, left = Tree(), Counter[str](), list(checkpoints)
    with translated_errors():
        async with engine.connect() as connection:
            async for _, linked in links_after(connection, 0):
                tree.add(linked.leaf())
                counts[_counted(linked)] += 1
                while left and left[0]["size"] == tree.size:
                    document = left.pop(0)
                    if document["root"] != tree.root().hex() or document["counts"] != counts:
                        report.add(Fault.CHECKPOINT, f"{tree.size} links at {document['at']}")
    for document in left:
        gone = document["size"] - tree.size
        report.add(
            Fault.CHECKPOINT, f"{document['size']} links at {document['at']}", f"{gone} gone"
        )


async def proof(
    engine: AsyncEngine, decision_id: UUID, record: bytes | None, checkpoints: Sequence[Document]
) -> Document:
    """What `shadow_advisor_client.proof` needs to see that a record was in the log at a checkpoint;
    of one that retention dropped, that its hash was. Raises `CheckpointError` when no checkpoint
    covers it."""
    leaves: list[bytes] = []
    place, entry = None, None
    with translated_errors():
        async with engine.connect() as connection:
            async for _, linked in links_after(connection, 0):
                if (linked.key, linked.fate) == (str(decision_id), Fate.EVENT):
                    place, entry = len(leaves), linked
                leaves.append(linked.leaf())
    if place is None or entry is None:
        raise ShadowLogUnavailable(f"decision {decision_id} has no link")
    covering = [each for each in checkpoints if place < each["size"] <= len(leaves)]
    if not covering:
        raise CheckpointError(f"no checkpoint covers decision {decision_id} yet; ask again later")
    checkpoint = covering[0]
    return {
        "record": None if record is None else record.decode(),
        "link": entry._asdict(),
        "index": place,
        "path": [each.hex() for each in path(leaves[: checkpoint["size"]], place)],
        "checkpoint": checkpoint,
    }
