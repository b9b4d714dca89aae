"""From a version's directory to a policy that is verified and ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from app.domain.errors import AdvisorError, ModelFileError
from app.domain.model.manifest import ModelManifest
from app.policy.encoding import PromptEncoder
from app.policy.options import DEFAULTS, BackendOptions
from app.policy.port import Policy
from app.policy.rivals import RIVAL_NAME, RivalPolicy, read_rival
from app.policy.versions.copies import PrivateCopies
from app.policy.versions.files import refusals
from app.policy.versions.lora import CONFIG_NAME, read_lora
from app.policy.versions.store import (
    NUMBERS_NAME,
    base_of,
    find_manifest,
    load_manifest,
    model_files,
    require_hashes,
)
from app.policy.vllm import VllmPolicy

if TYPE_CHECKING:
    from app.policy.in_process.loading import InProcess


class Backends:
    """Builds policies with one set of options; versions over one base model share it."""

    def __init__(self, options: BackendOptions = DEFAULTS) -> None:
        self.options = options
        self._in_process: InProcess | None = None

    def load(self, directory: Path, registered: ModelManifest | None = None) -> Policy:
        """Verify a version and build its policy: a whole model, or an adapter. Blocks for seconds:
        call it before serving, or in a thread, one call at a time.

        Parameters
        ----------
        registered : the manifest that the registry has under the version's name; the directory's
            files must be its files, and it is served. None takes the directory's own.

        Raises
        ------
        ManifestMismatch, ModelFileError : this version must not be served; the message says why and
            how to mend it.
        """
        try:
            with refusals(directory):
                return self._load(directory, registered)
        except AdvisorError as error:
            if str(directory) not in str(error):
                error.args = (f"{directory}: {error}",)
            raise

    def _load(self, directory: Path, registered: ModelManifest | None) -> Policy:
        # No model directory is refused before torch is loaded for nothing.
        if model_files(directory) == {RIVAL_NAME}:
            return _rival(directory, self.options, registered)
        if self.options.vllm_url is not None:
            return _on_vllm(directory, self.options.vllm_url, self.options, registered)
        if self.options.elsewhere is not None:
            return self.options.elsewhere.load(directory, registered)
        if self._in_process is None:
            # Only this backend needs torch; the others start without it.
            from app.policy.in_process.loading import InProcess

            self._in_process = InProcess(self.options)
        return self._in_process.load(directory, registered)


def _rival(
    directory: Path, options: BackendOptions, registered: ModelManifest | None
) -> RivalPolicy:
    """A rival, whose cut is the calibration of its manifest."""
    manifest = registered or load_manifest(directory)
    manifest.require_compatible()
    with PrivateCopies(options.copies).of(directory, manifest.files) as copy:
        rival = read_rival(copy / RIVAL_NAME)
    if rival.calibration() != manifest.calibration:
        raise ModelFileError(
            f"{directory}: its calibration is not that of its cut: publish it again"
        )
    return RivalPolicy(manifest, rival)


def _on_vllm(
    directory: Path, url: str, options: BackendOptions, registered: ModelManifest | None
) -> Policy:
    """A whole model that the server holds, or an ordinary adapter that it adds to its model when it
    is asked by the adapter's name. Weights are hashed where they lie, since the server reads them
    there; what prompts are written with is loaded from a copy."""
    manifest = registered or find_manifest(directory, options.manifests)
    manifest.require_compatible()
    if registered is not None:
        require_hashes(directory, directory, manifest.files)
    base = base_of(manifest, options.roots)
    whole, files = directory, manifest.files
    if base is not None:
        _require_ordinary(directory, manifest)
        whole, files = base[0], base[1].files
        base[1].require_compatible()
        require_hashes(whole, whole, files)
    with PrivateCopies(options.copies).of(whole, files, weights=False) as copy:
        encoder = PromptEncoder.from_directory(copy, options.prompt_tokens)
    usual = str(directory) if base is None else manifest.model_version
    return VllmPolicy(url, options.vllm_names.get(directory, usual), manifest, encoder, options)


def _require_ordinary(directory: Path, manifest: ModelManifest) -> None:
    """Raises `ModelFileError` for an adapter that vLLM cannot add."""
    activated = read_lora(directory / CONFIG_NAME).get("alora_invocation_tokens") is not None
    if activated or NUMBERS_NAME in manifest.files:
        raise ModelFileError(
            f"{directory} is an activated adapter, whose branches and numbers have no place in"
            " vLLM's requests: unset VLLM_URL, or train one with adapter.kind = 'ordinary'"
        )
