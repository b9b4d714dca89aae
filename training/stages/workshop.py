"""The workshop: an artefact of a declared stage is found when it is finished, and else built.

Its key is the hash of the stage's name, its function, its code and the libraries that this imports
(`training.stages.key`), its settings by value, its inputs' hashes (`training.stages.declared`), and
of prompt, action space and feature schema. What a stage keeps beside its artefacts is kept apart
by code and libraries as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from app.domain.canonical import content_hash
from app.domain.features import FEATURE_SCHEMA
from app.domain.model.actions import ACTION_SPACE_HASH
from app.domain.model.prompt import PROMPT_VERSION
from training.arrays import Meter, silent
from training.stages.declared import CACHE, DECLARED, FOLDER, PROGRESS, Stage
from training.stages.key import Sources
from training.stages.store import Artifact, Facts, Store

CODE = ("function", "code", "libraries")
"""What may differ in an artefact that a person adopts."""


class Workshop:
    """Makes artefacts in a folder.

    Parameters
    ----------
    tell : hears one line per artefact, for people.
    meter : opens a progress bar for an artefact that is built.
    adopt : names of finished artefacts' folders that are taken although other code made them: of
        the same stage, settings and inputs. Somebody vouches for it that the change of code does
        not change them.
    sources : the code that counts.
    """

    def __init__(
        self,
        root: Path,
        tell: Callable[[str], None] = lambda line: None,
        meter: Meter = lambda title: nullcontext(silent),
        adopt: Sequence[str] = (),
        sources: Sources | None = None,
    ) -> None:
        self.tell, self._meter, self._adopt = tell, meter, adopt
        self._store, self._sources = Store(root), sources or Sources()

    def make(
        self, function: Callable[..., Facts], about: str = "", /, **arguments: Any
    ) -> Artifact:
        """The artefact of a stage function with these arguments; `about` tells people which of
        several.

        Raises
        ------
        TypeError : the arguments are not the function's. ArtifactError : a finished artefact was
            damaged. And what the stage raises: then nothing is left behind.
        """
        stage = DECLARED[function]
        depends = depends_on(stage, arguments, self._sources)
        title = f"{stage.name} ({about})" if about else stage.name
        finished = self._store.find(stage.name, depends)
        if finished is not None:
            self.tell(f"{title}: found {finished.path.name}")
            return finished
        adopted = self._adopted(stage.name, depends)
        if adopted is not None:
            self.tell(f"{title}: adopted {adopted.path.name}")
            return adopted
        self.tell(f"{title}: building {self._store.name(stage.name, depends)}")

        def fill(folder: Path) -> Facts:
            given = stage.opened(arguments) | self._cache(stage)
            if PROGRESS not in stage.parameters:
                return function(**{FOLDER: folder}, **given)
            with self._meter(title) as progress:
                return function(**{FOLDER: folder, PROGRESS: progress}, **given)

        return self._store.build(stage.name, depends, fill)

    def _cache(self, stage: Stage) -> dict[str, Path]:
        """Where the stage keeps parts of its work, if it does."""
        if stage.kept_by is None:
            return {}
        name = content_hash(self._sources.behind([stage.kept_by])._asdict())
        return {CACHE: self._store.root / CACHE / name.removeprefix("sha256:")[:16]}

    def _adopted(self, stage: str, depends: dict[str, Any]) -> Artifact | None:
        for name in self._adopt:
            if name.startswith(f"{stage}-"):
                artifact = Artifact.open(self._store.root / name, stage, deep=True)
                others = [key for key in depends if artifact.manifest.get(key) != depends[key]]
                if set(others) <= set(CODE):
                    return artifact
                self.tell(f"{stage}: {name} is not adopted, its {others[0]} differs")
        return None


def depends_on(stage: Stage, arguments: dict[str, Any], sources: Sources) -> dict[str, Any]:
    """All that the artefact depends on, by kind; JSON."""
    given = stage.given(arguments)
    code = sources.behind(given.modules)
    return {
        "function": stage.function.__qualname__,
        "config": given.settings,
        "inputs": given.inputs,
        "data": given.data,
        "code": code.hash,
        "libraries": code.libraries,
        "prompt_version": PROMPT_VERSION,
        "action_space": ACTION_SPACE_HASH,
        "feature_schema": FEATURE_SCHEMA,
    }
