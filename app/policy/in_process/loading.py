"""Loading versions into this process: whole models, activated adapters over a shared base, and
merged adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from app.domain.manifest import BaseModelRef, ModelManifest
from app.policy.encoding import PromptEncoder
from app.policy.in_process.adapter import Adapter
from app.policy.in_process.bases import Bases
from app.policy.in_process.batching import MAX_BATCH, MAX_QUEUE, Batcher
from app.policy.in_process.importer import import_directory
from app.policy.in_process.label_reader import LabelReader, load_model
from app.policy.in_process.policy import TransformersPolicy
from app.policy.store import find_base, load_manifest


class InProcess:
    """Builds `TransformersPolicy` objects; parameters as `load_policy` and `Batcher` have them."""

    def __init__(
        self,
        bases: Bases,
        roots: Sequence[Path],
        prompt_tokens: int,
        *,
        threads: int = 1,
        max_batch: int = MAX_BATCH,
        max_queue: int = MAX_QUEUE,
        observe: Callable[[str, float], None] | None = None,
    ):
        self._bases = bases
        self._roots = roots
        self._prompt_tokens = prompt_tokens
        self._threads = threads
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._observe = observe

    def load(self, directory: Path, registry: Path | None) -> TransformersPolicy:
        """A version, verified. Raises `ManifestMismatch` or `ModelFileError`."""
        if registry is None:
            manifest = load_manifest(directory)
        else:
            manifest = import_directory(
                directory, registry, threads=self._threads, prompt_tokens=self._prompt_tokens
            )
        if manifest.base is not None:
            return self._load_adapter(directory, manifest, manifest.base)
        held = manifest.hash()
        batcher = self._bases.acquire(held) or self._share(
            held, LabelReader.load(directory, self._prompt_tokens)
        )
        return TransformersPolicy(batcher, manifest, release=lambda: self._bases.release(held))

    def _load_adapter(
        self, directory: Path, manifest: ModelManifest, base: BaseModelRef
    ) -> TransformersPolicy:
        where, base_manifest = find_base(base, self._roots)
        held = base_manifest.hash()
        encoder = PromptEncoder.from_directory(where, self._prompt_tokens)
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
        return TransformersPolicy(self._batcher(LabelReader(model, encoder)), manifest)

    def _share(self, manifest_hash: str, reader: LabelReader) -> Batcher:
        batcher = self._batcher(reader)
        self._bases.add(manifest_hash, batcher)
        return batcher

    def _drop(self, manifest_hash: str, batcher: Batcher) -> None:
        """Give back what was acquired for a version that is not going to be served over it."""
        if self._bases.release(manifest_hash):
            batcher.abandon()

    def _batcher(self, reader: LabelReader) -> Batcher:
        return Batcher(
            reader,
            threads=self._threads,
            max_batch=self._max_batch,
            max_queue=self._max_queue,
            observe=self._observe,
        )
