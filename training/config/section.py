"""What all sections of a configuration share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from app.domain.errors import AdvisorError


class ConfigError(AdvisorError):
    """A configuration file cannot be used; the message names every key at fault."""


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
