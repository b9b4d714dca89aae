"""What all sections of a configuration share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

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
