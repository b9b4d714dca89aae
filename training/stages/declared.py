"""A stage: a typed function that fills a folder, declared beside what it does.

    @stage("labels")
    def labels(
        folder: Path, scenarios: ScenarioSet, market: History,
        *, settings: OutcomesConfig, progress: Progress = silent,
    ) -> Facts: ...

Its parameters say what the result depends on, by their kind:

- `folder` is to be filled, `progress` hears how far it is, `cache` keeps parts of the work for a
  stage that is killed or asked for more; annotated `Annotated[Path, KeptBy(function)]`, it holds
  only what that function's code made. All three come from the workshop.
- Keyword parameters are settings: they enter the key by value.
- The others are inputs. The workshop is given artefacts, and opens them as what the parameter is
  annotated with (`ScenarioSet.open`; an `Artifact` stays what it is; a mapping holds many). What
  belongs together is one parameter, a named tuple, and given as a mapping of its fields. A thing of
  its own, such as bars or limits, enters by its `hash()`; a function by its code.
- What is annotated `Aside[...]` changes no result: where a cache lies, how many threads, a clock.

The function stays a plain function: tests call it with what it works on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import (
    Annotated,
    Any,
    NamedTuple,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from training.stages.store import Artifact, Facts

Function = TypeVar("Function", bound=Callable[..., Facts])
Value = TypeVar("Value")
_ASIDE = "changes no result"
Aside = Annotated[Value, _ASIDE]
FOLDER, PROGRESS, CACHE = "folder", "progress", "cache"
_FROM_WORKSHOP = (FOLDER, PROGRESS, CACHE)


class KeptBy(NamedTuple):
    """Of a cache: what is kept there is made by this function, and by what its module imports."""

    function: Callable[..., Any]


@runtime_checkable
class Hashed(Protocol):
    """Data that is no artefact."""

    def hash(self) -> str:
        """Of all that a result may depend on."""
        ...


class Given(NamedTuple):
    """What a stage was asked with, by the names of its parameters."""

    settings: dict[str, Any]
    """JSON."""
    inputs: dict[str, str]
    """Artefacts' hashes; of those of a mapping, under `parameter: key`."""
    data: dict[str, str]
    """Hashes of what is no artefact, and names of functions."""
    modules: list[str]
    """Of the functions."""


@dataclass(frozen=True)
class Stage:
    """A declared stage. Several may share a name: other ways to artefacts of one kind."""

    name: str
    function: Callable[..., Facts]

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Of the function, annotations as types."""
        return self.signature.parameters

    @cached_property
    def signature(self) -> inspect.Signature:
        """Of the function, annotations as types."""
        return inspect.signature(self.function, eval_str=True)

    def given(self, arguments: Mapping[str, Any]) -> Given:
        """The arguments, sorted by what their parameters are.

        Raises
        ------
        TypeError : an argument is missing or unknown, or an input cannot be hashed.
        """
        provided = {name: None for name in _FROM_WORKSHOP if name in self.parameters}
        bound = self.signature.bind(**provided, **arguments)
        bound.apply_defaults()
        given = Given({}, {}, {}, [self.function.__module__])
        for name, value in bound.arguments.items():
            parameter = self.parameters[name]
            if name in provided or _is_aside(parameter.annotation) or value is None:
                continue
            if parameter.kind is parameter.KEYWORD_ONLY:
                given.settings[name] = _value_of(value)
            else:
                self._add(given, name, value)
        return given

    def _add(self, given: Given, name: str, value: Any) -> None:
        """Note an input, and those that it holds."""
        if isinstance(value, Mapping):
            for key, held in value.items():
                self._add(given, f"{name}: {key}", held)
        elif isinstance(value, Artifact):
            given.inputs[name] = value.hash
        elif isinstance(value, FunctionType):
            given.data[name] = value.__qualname__
            given.modules.append(value.__module__)
        elif isinstance(value, Hashed):
            given.data[name] = value.hash()
        else:
            kind = type(value).__name__
            raise TypeError(
                f"stage {self.name}: {name} is {kind}: no artefact, no function, no hash()"
            )

    @property
    def kept_by(self) -> str | None:
        """The module whose code makes what the cache keeps; None: the stage keeps nothing."""
        if CACHE not in self.parameters:
            return None
        (keeper,) = (
            each for each in get_args(self.parameters[CACHE].annotation) if isinstance(each, KeptBy)
        )
        return keeper.function.__module__

    def opened(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with artefacts opened, as the function takes them."""
        taken = dict(arguments)
        for name, value in arguments.items():
            parameter = self.parameters[name]
            if parameter.kind is not parameter.KEYWORD_ONLY:
                taken[name] = _opened(value, parameter.annotation)
        return taken


DECLARED: dict[Callable[..., Facts], Stage] = {}
"""The stages of all modules that were imported, by their functions."""


def stage(name: str) -> Callable[[Function], Function]:
    """Declare a function as a way to artefacts of this name. It stays what it is."""

    def declare(function: Function) -> Function:
        DECLARED[function] = Stage(name, function)
        return function

    return declare


def _value_of(setting: Any) -> Any:
    """JSON. A section stands under its class: the held-out period's may hold what others hold."""
    plain = to_jsonable_python(setting)
    return {type(setting).__name__: plain} if isinstance(setting, BaseModel) else plain


def _is_aside(annotation: Any) -> bool:
    return get_origin(annotation) is Annotated and _ASIDE in get_args(annotation)


def _opened(value: Any, annotation: Any) -> Any:
    """An artefact as its parameter's annotation reads it: `Labels`, `Labels | None`, one of
    `Mapping[str, Labels]`, or those of a named tuple's fields."""
    if isinstance(value, Mapping) and isinstance(annotation, type):
        kinds_of = get_type_hints(annotation)
        return annotation(**{name: _opened(held, kinds_of[name]) for name, held in value.items()})
    meant = get_args(annotation) or (annotation,)
    if isinstance(value, Mapping):
        return {key: _opened(held, meant[-1]) for key, held in value.items()}
    kinds: list[Any] = [kind for kind in meant if isinstance(kind, type)]
    if not isinstance(value, Artifact) or Artifact in kinds:
        return value
    return kinds[0].open(value)
