"""Loading versions into this process: whole models, activated adapters over a shared base, and
merged adapters.

The first load imports torch in a thread, while files are hashed and the tokenizer is tried, which
hold no lock of Python's: so whatever brings torch is imported here where it is used.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING

from app.domain.errors import ModelFileError
from app.domain.model.manifest import MANIFEST_NAME, ModelManifest
from app.policy.encoding import PromptEncoder
from app.policy.options import BackendOptions
from app.policy.versions.copies import PrivateCopies
from app.policy.versions.store import base_of, read_manifest

if TYPE_CHECKING:
    from app.policy.in_process.adapter import Adapter
    from app.policy.in_process.batching import Batcher
    from app.policy.in_process.cascade import Cascade
    from app.policy.in_process.policy import TransformersPolicy


def _import_torch() -> None:
    import_module("app.policy.in_process.policy")
    if not gc.isenabled():  # A process starts: what was imported stays, so nobody need look at it.
        gc.freeze()


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

    def acquire(self, content: str) -> Batcher | None:
        """The model with these files, with one more user; None when it is not in memory."""
        with self._lock:
            held = self._held.get(content)
            if held is not None:
                held.users += 1
            return held.batcher if held is not None else None

    def add(self, content: str, batcher: Batcher) -> None:
        """Share a model that was just loaded; who loaded it is its first user."""
        with self._lock:
            self._held[content] = _Held(batcher, 1)

    def release(self, content: str) -> bool:
        """One user less. True when that was the last one: the model is forgotten, and its thread is
        to be ended."""
        with self._lock:
            held = self._held[content]
            held.users -= 1
            if held.users == 0:
                del self._held[content]
            return held.users == 0


class InProcess:
    """Builds `TransformersPolicy` objects; those over one base model share its weights and its
    thread."""

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._bases = Bases()
        self._copies = PrivateCopies(options.copies)
        Thread(target=_import_torch, name="torch").start()

    def load(self, directory: Path, registered: ModelManifest | None = None) -> TransformersPolicy:
        """A version, from a verified private copy, under its own manifest or the one that is
        registered under its name. Raises `ManifestMismatch` or `ModelFileError`."""
        manifest = registered or self._manifest_of(directory)
        manifest.require_compatible()
        base = base_of(manifest, self._options.roots)
        if base is not None:
            return self._load_adapter(directory, manifest, *base)
        held = manifest.files_hash()
        with ExitStack() as undo:
            batcher = self._bases.acquire(held)
            if batcher is not None:
                undo.callback(self._drop, held, batcher)
            with self._copies.of(directory, manifest.files) as copy:  # Verified when shared, too.
                if batcher is None:
                    encoder = PromptEncoder.from_directory(copy, self._options.prompt_tokens)
                    batcher = self._share(held, self._model(copy), encoder)
                    undo.callback(self._drop, held, batcher)
            batcher.try_out(questions=manifest.calibration.asked)
            self._bases.acquire(held)  # The policy's own, as below.
        return self._policy(manifest, batcher, held)

    def _manifest_of(self, directory: Path) -> ModelManifest:
        """The directory's own manifest, or the one kept for it; measured when there is none."""
        options = self._options
        if options.manifests is None or (directory / MANIFEST_NAME).is_file():
            return read_manifest(directory / MANIFEST_NAME)
        # It converts and measures with transformers; who has a manifest needs neither.
        from app.policy.in_process.importer import import_directory

        return import_directory(
            directory,
            options.manifests,
            threads=options.threads,
            prompt_tokens=options.prompt_tokens,
            copies=self._copies,
        )

    def _load_adapter(
        self, directory: Path, manifest: ModelManifest, where: Path, base: ModelManifest
    ) -> TransformersPolicy:
        base.require_compatible()
        held = base.files_hash()
        with ExitStack() as undo:
            batcher = self._bases.acquire(held)
            if batcher is None:
                whole = undo.enter_context(self._copies.of(where, base.files))
                encoder = PromptEncoder.from_directory(whole, self._options.prompt_tokens)
                model = self._model(whole)
            else:  # What is in memory was verified when it was loaded.
                undo.callback(self._drop, held, batcher)
                encoder, model = batcher.reader.encoder, batcher.reader.model
            from app.policy.in_process.adapter import Adapter

            with self._copies.of(directory, manifest.files) as copy:
                adapter = Adapter.load(copy, model, encoder.tail)
            if not adapter.activated:
                if batcher is not None:
                    whole = undo.enter_context(self._copies.of(where, base.files))
                    model = self._model(whole)
                return self._merged(adapter, model, encoder, manifest)
            if batcher is None:
                batcher = self._share(held, model, encoder)
                undo.callback(self._drop, held, batcher)
            batcher.try_out(adapter, manifest.calibration.asked)
            self._bases.acquire(held)  # The policy's own; what was acquired here is given back.
        return self._policy(manifest, batcher, held, adapter)

    def _policy(
        self,
        manifest: ModelManifest,
        batcher: Batcher,
        held: str,
        adapter: Adapter | None = None,
    ) -> TransformersPolicy:
        from app.policy.in_process.policy import TransformersPolicy

        return TransformersPolicy(
            batcher,
            manifest,
            adapter,
            cascade=self._cascade(manifest, batcher),
            release=lambda: self._bases.release(held),
        )

    def _cascade(self, manifest: ModelManifest, batcher: Batcher) -> Cascade | None:
        """Rough readings, where a certificate vouches for them and no engine was asked for."""
        from app.policy.in_process.cascade import Cascade
        from app.policy.in_process.certificate import Certificate

        if self._options.engine is not None:
            return None
        certificate = Certificate.find(manifest, self._options.certificates)
        if certificate is None or not batcher.can_read_roughly():
            return None
        return Cascade(certificate, self._options.telemetry)

    def _merged(
        self, adapter: Adapter, model: object, encoder: PromptEncoder, manifest: ModelManifest
    ) -> TransformersPolicy:
        """An ordinary adapter in a model of its own: it changes the keys and values of every
        token."""
        from app.policy.in_process.policy import TransformersPolicy

        adapter.merge_into(model)
        batcher = self._batcher(model, encoder)
        try:
            batcher.try_out(questions=manifest.calibration.asked)
        except ModelFileError:
            batcher.abandon()
            raise
        return TransformersPolicy(batcher, manifest)

    def _model(self, copy: Path) -> object:
        import torch

        from app.policy.in_process.whole.served import load_to_serve

        # torch counts them for each thread, and a busy machine pays tenfold for one too many.
        torch.set_num_threads(self._options.threads)
        return load_to_serve(copy)

    def _batcher(self, model: object, encoder: PromptEncoder) -> Batcher:
        from app.policy.in_process.batching import Batcher
        from app.policy.in_process.engines import reader_by

        return Batcher(reader_by(self._options, model, encoder), self._options)

    def _share(self, content: str, model: object, encoder: PromptEncoder) -> Batcher:
        batcher = self._batcher(model, encoder)
        self._bases.add(content, batcher)
        return batcher

    def _drop(self, content: str, batcher: Batcher) -> None:
        """Give back what was acquired for a version that is not going to be served over it."""
        if self._bases.release(content):
            batcher.abandon()
