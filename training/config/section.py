"""What all sections of a configuration share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from app.domain.errors import AdvisorError


class ConfigError(AdvisorError):
    """A configuration file cannot be used; the message names every key at fault."""


def home() -> Path:
    """The folder that `advisor` calls HOME."""
    return Path(os.environ.get("ADVISOR_HOME") or "var")


def at_home(path: Path) -> Path:
    """A path in which `var` stands for HOME, as `artifacts = "var/artifacts/cpu"`."""
    return home() / path.relative_to("var") if path.parts[:1] == ("var",) else path


HomePath = Annotated[Path, AfterValidator(at_home)]
"""A path of a configuration that may lie under HOME, which is written `var`."""


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def true_is_no_number(cls, values: Any) -> Any:
        """`limit = true` would be a limit of 1."""
        for name, field in cls.model_fields.items() if isinstance(values, dict) else ():
            given, annotation = values.get(name), field.annotation
            if isinstance(given, bool) and bool not in (annotation, *get_args(annotation)):
                raise ValueError(f"{name} must not be {str(given).lower()}")
        return values
