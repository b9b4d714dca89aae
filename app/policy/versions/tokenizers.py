"""Tokenizers from strangers: how much longer one may make a text, told from its file alone.

A tokenizer rewrites a text before it cuts it up. Rules that write more than they read, one after
the other, fill memory from a prompt of a few hundred characters, and the Rust library then ends the
process; rules that apply to what only some prompts hold show nothing when a version is loaded.

And how long it takes: its patterns are programs, which may get lost in a text. A process of its own
within limits reads the file first, and cuts up what a version is loaded with, and texts in which
patterns get lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64decode
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from app.domain.canonical import digest
from app.domain.errors import ModelFileError

MOST_GROWTH = 128
"""How many characters one may become. NFKC needs 18, and it is of one in a million."""
MOST_PARTS = 32
"""Normalizers, pre-tokenizers and the like, each by itself; families of models have up to ten."""
MOST_TEXT = 32
"""Characters that a part may put before or behind a text or word, whatever it reads."""
_GROWTH = {
    "BertNormalizer": 4,
    "ByteLevel": 4,
    "Lowercase": 3,
    "Metaspace": 2,
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
}
"""Characters for one, at most; of others one."""
MOST_SECONDS = 0.1
"""Of processor time for one text; a thousand characters take half a millisecond."""
PATIENCE_S = 180.0
"""Seconds of waiting, for a machine that is busy; the processor time is limited inside."""
LONG = 512
PROBES = (
    *(character * LONG for character in "aA 0.\n<é中🚀"),
    *(pair * (LONG // 2) for pair in ("ab", "a ", "a1", "1.", " \n", "a.", "Aa")),
    "score 6.8 of 5.5 conf 7.2\nrsi 56 adx 24 atr 1.0 vol 63\nbtc up fear 34\n" * 7,
)
"""Longer than anything that a prompt repeats."""
_WORKER = Path(__file__).with_name("tokenizer_worker.py")
_quick: set[str] = set()
"""Hashes of what was tried here and found quick."""
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_FIXED = ("prepend", "prefix", "suffix", "continuing_subword_prefix", "end_of_word_suffix")


def require_bounded(path: Path, description: dict[str, Any]) -> None:
    """Raise `ModelFileError` when a tokenizer, as its file describes it, could make a short text a
    very long one, or reads the same text differently each time."""
    model = description.get("model") or {}
    if model.get("dropout"):
        raise ModelFileError(
            f"{path}: its model drops merges by chance (dropout), so that a prompt is read"
            " differently each time: set it to null"
        )
    growth = 1
    for role in _PARTS:
        parts, lists = _parts(description.get(role))
        most = max(len(parts), *lists, 0)
        if most > MOST_PARTS:
            raise ModelFileError(f"{path}: its {role} has {most} parts: it is no tokenizer's")
        for part in (*parts, model):
            longest = max(len(str(part.get(name) or "")) for name in _FIXED)
            if longest > MOST_TEXT:
                raise ModelFileError(f"{path}: a part of it adds {longest} characters to each text")
        factor = prod(map(_growth, parts))
        growth = max(growth, factor if role == "decoder" else growth * factor)
    if growth > MOST_GROWTH:
        raise ModelFileError(
            f"{path}: it may write {growth} characters for one of a prompt, and so fill memory:"
            " choose another model, or take the replacements out of it"
        )


def require_quick(path: Path, content: str, texts: Sequence[str]) -> None:
    """Raise `ModelFileError` when a tokenizer, whose file this is, cannot be read within limits, or
    takes long for one of these texts or of `PROBES`."""
    tried = [*texts, *PROBES]
    mark = digest(json.dumps([content, tried]).encode())
    if mark in _quick:
        return
    answer = _tried(path, tried)
    if answer.error is not None:
        raise ModelFileError(f"{path} is not a tokenizer that can be used: {answer.error}")
    slowest = max(range(len(tried)), key=lambda turn: answer.seconds[turn])
    if answer.seconds[slowest] > MOST_SECONDS:
        raise ModelFileError(
            f"{path}: it takes {answer.seconds[slowest]:.1f} s for {len(tried[slowest])}"
            " characters, in which one of its patterns gets lost: choose another model, or mend the"
            " pattern"
        )
    _quick.add(mark)


class _Tried(NamedTuple):
    seconds: tuple[float, ...]
    error: str | None


def _tried(path: Path, texts: list[str]) -> _Tried:
    """What the worker answers. Raises `ModelFileError` when it does not."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_WORKER), str(path)],
            input=json.dumps(texts).encode(),
            capture_output=True,
            timeout=PATIENCE_S,
            env={"TOKENIZERS_PARALLELISM": "false"},
            check=False,
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ModelFileError(f"{path} could not be tried: {type(error).__name__}") from error
    if not isinstance(answer, dict):
        raise ModelFileError(
            f"{path} takes more time or memory than a tokenizer may: choose another model"
        )
    return _Tried(tuple(answer["seconds"]), answer["error"])


def _parts(value: Any) -> tuple[list[dict[str, Any]], list[int]]:
    """Every object in a part of a tokenizer that has a type, and the length of every list."""
    parts: list[dict[str, Any]] = []
    lists: list[int] = []
    pending = [value]
    while pending:
        inner = pending.pop()
        if isinstance(inner, dict):
            parts += [inner] if "type" in inner else []
            pending += inner.values()
        elif isinstance(inner, list):
            lists.append(len(inner))
            pending += inner
    return parts, lists


def _growth(part: dict[str, Any]) -> int:
    kind = part["type"]
    if kind == "Replace":
        pattern, content = part.get("pattern"), str(part.get("content") or "")
        keeps = not (isinstance(pattern, dict) and pattern.get("String"))
        return max(len(content) + keeps, 1)  # A pattern may match nothing, before each character.
    if kind == "Precompiled":
        return max(_longest(str(part.get("precompiled_charsmap") or "")), 1)
    return _GROWTH.get(kind, 1) if isinstance(kind, str) else 1


def _longest(charsmap: str) -> int:
    """Bytes of the longest text that one of SentencePiece's maps writes for a character: behind a
    table, whose size stands before it, they lie one after the other, each ended by a zero."""
    told = b64decode(charsmap)
    table = int.from_bytes(told[:4], "little")
    return max(map(len, told[4 + table :].split(b"\0")))
