"""What all sections of a configuration share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from app.domain.errors import AdvisorError

LARGEST = 1e10
"""Of every number: seeds, hours, counts, weights."""


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

    @model_validator(mode="after")
    def no_number_is_without_end(self) -> Self:
        """What is worked out with a larger one ends in an overflow, hours later."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int | float) and abs(value) > LARGEST:
                raise ValueError(f"{name} is beyond {LARGEST:g}")
        return self
