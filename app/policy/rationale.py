"""Generated text made presentable: whole sentences, printable, short."""

from __future__ import annotations

import re

RATIONALE_TOKENS = 48
RATIONALE_CHARACTERS = 300
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)")
_SPACE = re.compile(r"\s+")


def sentences(text: str) -> str | None:
    """The first one or two whole sentences of `text` within `RATIONALE_CHARACTERS`; None when there
    is none.

    Control and other unprintable characters are dropped, white space is made single.
    """
    printable = "".join(character if character.isprintable() else " " for character in text)
    whole = _SENTENCE.findall(_SPACE.sub(" ", printable).strip())
    for count in (2, 1):
        kept = " ".join(sentence.strip() for sentence in whole[:count])
        if 0 < len(kept) <= RATIONALE_CHARACTERS:
            return kept
    return None


def is_complete(text: str) -> bool:
    """True when `text` holds two whole sentences: no more is needed."""
    return len(_SENTENCE.findall(_SPACE.sub(" ", text))) >= 2
