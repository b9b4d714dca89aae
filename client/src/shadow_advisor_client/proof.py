"""Was a decision in the log? Checks what `advisor prove` printed:

    python -m shadow_advisor_client.proof PROOF.json PUBLIC_KEY

Needs the package `cryptography` (the extra `proof`) and nothing else of this one: the file may be
copied and run by itself. PUBLIC_KEY is the hex key that the operator published when checkpoints
began: a key that stands only in the proof proves nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def canonical(value: Any) -> bytes:
    """RFC 8785 for objects of texts and integers."""
    written = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return written.encode()


def root_of(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root that a leaf and its path lead to (RFC 9162, 2.1.3.2). Raises ValueError."""
    if index >= size:
        raise ValueError("the leaf is not in a tree of that size")
    first, last = index, size - 1
    for sibling in path:
        if last == 0:
            raise ValueError("the path is too long")
        if first & 1 or first == last:
            leaf = hashlib.sha256(b"\x01" + sibling + leaf).digest()
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            leaf = hashlib.sha256(b"\x01" + leaf + sibling).digest()
        first, last = first >> 1, last >> 1
    if last:
        raise ValueError("the path is too short")
    return leaf


def fault(proof: dict[str, Any], key: str) -> str | None:
    """What is wrong with a proof; None when it holds."""
    link, checkpoint = proof["link"], dict(proof["checkpoint"])
    signature = bytes.fromhex(checkpoint.pop("signature"))
    if checkpoint["key"] != key:
        return "the checkpoint was signed by another key"
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(signature, canonical(checkpoint))
    except InvalidSignature:
        return "the checkpoint's signature does not fit"
    if link["kind"] != "decision":
        return "the link is not that of a decision"
    record = proof["record"]
    if record is not None:
        if link["payload"] != "sha256:" + hashlib.sha256(record.encode()).hexdigest():
            return "the record is not what was linked"
        if json.loads(record)["decision_id"] != link["key"]:
            return "the link is that of another decision"
    leaf = hashlib.sha256(b"\x00" + canonical(link)).digest()
    path = [bytes.fromhex(each) for each in proof["path"]]
    try:
        root = root_of(leaf, proof["index"], checkpoint["size"], path)
    except ValueError as error:
        return str(error)
    return None if root.hex() == checkpoint["root"] else "the link was not in the log"


NONE = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""What reading a document that is no proof raises."""


def main() -> None:
    """Say whether it holds; exit 1 when not."""
    try:
        proof = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        wrong = fault(proof, sys.argv[2])
    except NONE as error:
        print(f"this is no proof, or no key: {type(error).__name__}: {error}")
        sys.exit(1)
    link, at = proof["link"], proof["checkpoint"]["at"]
    as_what = "as it stands here"
    if proof["record"] is None:  # Retention dropped it; whoever kept it can hold it against this.
        as_what = f"and its record, which is not here, was {link['payload']}"
    print(wrong or f"decision {link['key']} was in the log at {at}, {as_what}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
