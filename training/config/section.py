"""What all sections of a configuration share."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from app.domain.errors import AdvisorError


class ConfigError(AdvisorError):
    """A configuration file cannot be used; the message names every key at fault."""


def home() -> Path:
    """The folder that `advisor` calls HOME."""
    return Path(os.environ.get("ADVISOR_HOME") or "var")


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
