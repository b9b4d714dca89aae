"""Every declared stage, with arguments that can be changed one by one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import BaseModel

import training.pipeline.evaluate
import training.pipeline.walk_forward  # noqa: F401  what the pipelines import is declared
from training.config.data import MarketConfig, OutcomesConfig
from training.config.judging import EvaluateConfig, GateConfig
from training.config.learning import Algorithm, ExpectedConfig
from training.judging.gate.evidence import Before
from training.judging.report.findings import Terms
from training.learning.algorithms import expected
from training.stages.declared import CACHE, DECLARED, FOLDER, PROGRESS, Stage
from training.stages.store import Artifact

PLAIN: dict[Any, Any] = {str: "a", float: 1.0, int: 1}


class Data(NamedTuple):
    """An input that is no artefact."""

    name: str

    def hash(self) -> str:
        return self.name


def artifact(name: str) -> Artifact:
    return Artifact(Path(name), {"stage": "any", "key": name, "files": {}})


def named(stage: Stage) -> str:
    return f"{stage.name}-{stage.function.__name__}"


def stages() -> list[Stage]:
    """Those of the product; tests declare some of their own."""
    every = sorted(DECLARED.values(), key=named)
    return [stage for stage in every if stage.function.__module__.startswith("training.")]


def is_setting(parameter: inspect.Parameter) -> bool:
    given = parameter.name not in (CACHE, PROGRESS)
    return parameter.kind is parameter.KEYWORD_ONLY and given and not is_aside(parameter)


def is_aside(parameter: inspect.Parameter) -> bool:
    return "changes no result" in get_args(parameter.annotation)


def is_input(parameter: inspect.Parameter) -> bool:
    return parameter.kind is not parameter.KEYWORD_ONLY and parameter.name != FOLDER


def arguments(stage: Stage) -> dict[str, Any]:
    """One value for each parameter that the pipeline gives."""
    return {
        name: _value(parameter)
        for name, parameter in stage.parameters.items()
        if name not in (CACHE, FOLDER, PROGRESS)
    }


def _value(parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if is_aside(parameter):
        return "aside"
    if is_setting(parameter):
        return setting(annotation)
    return _input(annotation)


def _input(annotation: Any) -> Any:
    kinds = [*get_args(annotation), annotation]
    if get_origin(annotation) is Mapping:
        return {"first": _input(kinds[1]), "second": _input(kinds[1])}
    if any(hasattr(kind, "open") for kind in kinds):
        return artifact("first")
    if any(hasattr(kind, "hash") for kind in kinds):
        return Data("first")
    if hasattr(annotation, "_fields"):
        return {name: _input(kind) for name, kind in get_type_hints(annotation).items()}
    return expected.train


def setting(annotation: Any) -> Any:
    """A value of a setting's type."""
    if annotation == Algorithm:
        return ExpectedConfig()
    if annotation is Terms:
        return Terms("a", MarketConfig(), OutcomesConfig(), EvaluateConfig(), GateConfig(), 1.0)
    if get_origin(annotation) is Mapping:
        return {"first": (1, 2)}
    return PLAIN.get(annotation) or annotation()


def changes(value: Any) -> list[Any]:
    """The same setting with another value: a section with each of its plain fields changed."""
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return [
            value.model_copy(update={name: other})
            for name, field in fields.items()
            for other in changes(field)
        ]
    if isinstance(value, Terms | Before):
        return [
            replace(value, **{name: other})
            for name, field in vars(value).items()
            for other in changes(field)
        ]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    if isinstance(value, str):
        return [f"{value}x"]
    return [{"first": (1, 3)}] if isinstance(value, Mapping) else []
