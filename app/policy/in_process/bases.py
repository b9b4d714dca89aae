"""Base models in memory, each once: versions over the same base share its weights and its
thread."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # The backends that need no torch load without it.
    from app.policy.in_process.batching import Batcher


@dataclass
class _Held:
    batcher: Batcher
    users: int


class Bases:
    """Counts who uses which base model. Models are loaded in threads and released on the event
    loop, hence the lock."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._lock = Lock()

    def acquire(self, manifest_hash: str) -> Batcher | None:
        """The model with this manifest, with one more user; None when it is not in memory."""
        with self._lock:
            held = self._held.get(manifest_hash)
            if held is not None:
                held.users += 1
            return held.batcher if held is not None else None

    def add(self, manifest_hash: str, batcher: Batcher) -> None:
        """Share a model that was just loaded; who loaded it is its first user."""
        with self._lock:
            self._held[manifest_hash] = _Held(batcher, 1)

    def release(self, manifest_hash: str) -> bool:
        """One user less. True when that was the last one: the model is forgotten, and its thread is
        to be ended."""
        with self._lock:
            held = self._held[manifest_hash]
            held.users -= 1
            if held.users == 0:
                del self._held[manifest_hash]
            return held.users == 0
