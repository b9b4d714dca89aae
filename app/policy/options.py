"""How a version is run, wherever it runs: what a person may set, and who is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from app.domain.model.manifest import ModelManifest
from app.domain.record.decision import Engine
from app.policy.encoding import PROMPT_TOKENS
from app.policy.port import Policy
from app.telemetry import UNOBSERVED, Telemetry


class Loader(Protocol):
    """Loads versions."""

    def load(self, directory: Path, registered: ModelManifest | None = None) -> Policy:
        """A version's policy; see `Backends.load`."""


@dataclass(frozen=True)
class BackendOptions:
    """Options of every backend; each takes what concerns it.

    Parameters
    ----------
    roots : directories of version directories, in which also an adapter's base model is looked for.
    manifests : where those of directories without one are kept; None refuses such a directory.
        In process a missing one is measured and stored; vLLM wants it made before.
    certificates : directories of certificates, which allow rough readings of versions; without one
        a version is read exactly, and with an `engine` that was asked for.
    copies : where private copies of versions are kept, from which they are loaded; None copies to
        a temporary directory for as long as loading takes.
    prompt_tokens : longest prompt, head and tail included; longer ones abstain.
    threads : torch's intra-op threads. The setting is global to the process: with several models
        the last one loaded wins. One on a shared host, else the number of physical cores.
    engine : what multiplies in this process; None takes the fastest here of those that say the
        same.
    max_batch : most prompts in one forward pass. On a CPU a batch takes nearly as long as its rows
        one by one, so a big one buys little throughput and delays everybody in it.
    max_queue : requests that may wait for each policy, or be under way at vLLM; one more abstains
        with OVERLOADED at once.
    elsewhere : loads versions whose weights another process of ours runs; None runs them here.
    vllm_url : the server that runs the weights; None runs them in this process.
    vllm_names : names there, by a version's directory; one that is not in it goes by the directory
        as it was given, an adapter by its version.
    """

    roots: Sequence[Path] = ()
    manifests: Path | None = None
    certificates: Sequence[Path] = ()
    copies: Path | None = None
    prompt_tokens: int = PROMPT_TOKENS
    threads: int = 1
    engine: Engine | None = None
    max_batch: int = 4
    max_queue: int = 64
    elsewhere: Loader | None = None
    vllm_url: str | None = None
    vllm_names: Mapping[Path, str] = field(default_factory=dict)
    telemetry: Telemetry = UNOBSERVED


DEFAULTS = BackendOptions()
