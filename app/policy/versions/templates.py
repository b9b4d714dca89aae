"""Chat templates: programs that come with a model, rendered by a process of their own within
limits. What a template writes for the same messages is kept, so that it runs once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from app.domain.errors import ModelFileError
from app.domain.model.prompt import SYSTEM

MAX_TEMPLATE_CHARACTERS = 1 << 17
PATIENCE_S = 20.0
"""Seconds of waiting, for a machine that is busy; the processor time is limited inside."""
SENTINEL = "QXZUSERTEXTZXQ"
_WORKER = Path(__file__).with_name("template_worker.py")
_ARGUMENTS = {"enable_thinking": False, "date_string": "1 Jan 2024"}
"""A prompt must not depend on the day, and the label must come first, not a chain of thought."""

Turns = Sequence[dict[str, str]]


class _Rendered(NamedTuple):
    texts: tuple[str | None, ...]
    errors: tuple[str | None, ...]


class ChatTemplate:
    """A model's Jinja chat template, as transformers runs it, but without a clock and within
    limits.

    Raises
    ------
    ModelFileError : it is too long.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]):
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise ModelFileError(
                f"the chat template has {len(source)} characters, {MAX_TEMPLATE_CHARACTERS} are"
                " allowed: it is no chat template"
            )
        self._source = source
        self._arguments = {**_ARGUMENTS, **special_tokens}

    def split(self, conversations: Sequence[Turns]) -> list[tuple[str, str]]:
        """Text before and after the user's text (`SENTINEL`) in conversations that open with our
        system prompt.

        A template that refuses a system role (Gemma's does) gets the system prompt at the top of
        the user's turn.

        Raises
        ------
        ModelFileError : the template does not parse, goes beyond its limits, refuses our messages,
            or writes the user's text not once.
        """
        system = {"role": "system", "content": SYSTEM}
        texts = self._render([[system, *turns] for turns in conversations]).texts
        if not all(text is not None and SYSTEM in text for text in texts):
            merged = [_with_system(turns) for turns in conversations]
            texts, errors = self._render(merged)
            said = next((error for error in errors if error is not None), None)
            if said is not None:
                raise ModelFileError(f"the chat template refuses our messages: {said}")
        return [_parts(text or "") for text in texts]

    def _render(self, conversations: list[list[dict[str, str]]]) -> _Rendered:
        return _rendered(
            json.dumps(
                {
                    "source": self._source,
                    "arguments": self._arguments,
                    "conversations": conversations,
                }
            )
        )


def _with_system(turns: Turns) -> list[dict[str, str]]:
    first = {"role": "user", "content": f"{SYSTEM}\n\n{turns[0]['content']}"}
    return [first, *turns[1:]]


def _parts(text: str) -> tuple[str, str]:
    parts = text.split(SENTINEL)
    if len(parts) != 2:
        raise ModelFileError(
            f"the chat template writes the user's text {len(parts) - 1} times, not once"
        )
    return parts[0], parts[1]


@lru_cache(maxsize=64)
def _rendered(asked: str) -> _Rendered:
    """What the worker answers. Raises `ModelFileError` when it does not."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_WORKER)],
            input=asked.encode(),
            capture_output=True,
            timeout=PATIENCE_S,
            env={},
            check=False,
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ModelFileError(
            f"the chat template could not be rendered: {type(error).__name__}"
        ) from error
    if not isinstance(answer, dict):
        raise ModelFileError(
            "the chat template takes more time or memory than a chat template may: choose another"
            " model, or mend the template"
        )
    if "unparsed" in answer:
        raise ModelFileError(f"the chat template does not parse: {answer['unparsed']}")
    return _Rendered(tuple(answer["texts"]), tuple(answer["errors"]))
