"""Loading versions into this process: whole models, activated adapters over a shared base, and
merged adapters."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from app.domain.manifest import BaseModelRef, ModelManifest
from app.policy.encoding import PromptEncoder
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.batching import Batcher
from app.policy.in_process.importer import import_directory
from app.policy.in_process.label_reader import LabelReader, load_model
from app.policy.in_process.policy import TransformersPolicy
from app.policy.options import BackendOptions
from app.policy.store import find_base, load_manifest


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


class InProcess:
    """Builds `TransformersPolicy` objects; those over one base model share its weights and its
    thread."""

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._bases = Bases()

    def load(self, directory: Path) -> TransformersPolicy:
        """A version, verified. Raises `ManifestMismatch` or `ModelFileError`."""
        options = self._options
        if options.registry is None:
            manifest = load_manifest(directory)
        else:
            manifest = import_directory(
                directory,
                options.registry,
                threads=options.threads,
                prompt_tokens=options.prompt_tokens,
            )
        if manifest.base is not None:
            return self._load_adapter(directory, manifest, manifest.base)
        held = manifest.hash()
        batcher = self._bases.acquire(held) or self._share(
            held, LabelReader.load(directory, self._options.prompt_tokens)
        )
        return TransformersPolicy(batcher, manifest, release=lambda: self._bases.release(held))

    def _load_adapter(
        self, directory: Path, manifest: ModelManifest, base: BaseModelRef
    ) -> TransformersPolicy:
        where, base_manifest = find_base(base, self._options.roots)
        held = base_manifest.hash()
        encoder = PromptEncoder.from_directory(where, self._options.prompt_tokens)
        with ExitStack() as undo:
            batcher = self._bases.acquire(held)
            if batcher is None:
                load_manifest(where)  # What is in memory was verified when it was loaded.
                model = load_model(where)
            else:
                undo.callback(self._drop, held, batcher)
                model = batcher.reader.model
            adapter = Adapter.load(directory, model, encoder.tail)
            if not adapter.activated:
                return self._merged(
                    adapter, model if batcher is None else load_model(where), encoder, manifest
                )
            if batcher is None:
                batcher = self._share(held, LabelReader(model, encoder))
                undo.callback(self._drop, held, batcher)
            batcher.try_out(adapter)
            undo.pop_all()
        return TransformersPolicy(
            batcher, manifest, adapter, release=lambda: self._bases.release(held)
        )

    def _merged(
        self, adapter: Adapter, model: object, encoder: PromptEncoder, manifest: ModelManifest
    ) -> TransformersPolicy:
        """An ordinary adapter in a model of its own: it changes the keys and values of every
        token."""
        adapter.merge_into(model)
        return TransformersPolicy(Batcher(LabelReader(model, encoder), self._options), manifest)

    def _share(self, manifest_hash: str, reader: LabelReader) -> Batcher:
        batcher = Batcher(reader, self._options)
        self._bases.add(manifest_hash, batcher)
        return batcher

    def _drop(self, manifest_hash: str, batcher: Batcher) -> None:
        """Give back what was acquired for a version that is not going to be served over it."""
        if self._bases.release(manifest_hash):
            batcher.abandon()
