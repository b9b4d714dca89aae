"""A model version: immutable, described by a manifest that is written last and verified before serving."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from app.domain.actions import ACTION_SPACE_HASH, ACTIONS
from app.domain.errors import ManifestMismatch
from app.domain.features import FEATURE_SCHEMA
from app.domain.prompt import PROMPT_VERSION
from app.domain.record import Hash, Instant, Record, ShortText

MANIFEST_NAME = "manifest.json"


class Calibration(Record):
    """How label log-probabilities become a proposal: softmax((log p - bias) / temperature)."""

    bias: tuple[float, ...] = Field(
        (0.0,) * len(ACTIONS), description="per label, nats; what the model says without a scenario"
    )
    temperature: float = Field(1.0, gt=0)
    min_label_mass: float = Field(
        0.0, ge=0, le=1, description="below this share of probability on labels the policy abstains"
    )

    @model_validator(mode="after")
    def one_bias_per_action(self) -> Self:
        """The bias has the action space's length."""
        if len(self.bias) != len(ACTIONS):
            raise ValueError(f"bias has {len(self.bias)} entries, the action space has {len(ACTIONS)}")
        return self


class ModelManifest(Record):
    """What a version is, what it was made for, and the hash of every file in its directory."""

    model_version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    base_model: ShortText
    licence: ShortText
    created_at: Instant
    prompt_version: ShortText = PROMPT_VERSION
    action_space: Hash = ACTION_SPACE_HASH
    feature_schema: ShortText = FEATURE_SCHEMA
    calibration: Calibration = Calibration()
    files: dict[str, Hash] = Field(description="file name to content hash; safetensors only, never pickle")
    provenance: dict[str, Any] = Field(default_factory=dict, description="hashes of data, code and config; metrics")

    def require_compatible(self) -> None:
        """Raise `ManifestMismatch` unless this code renders and reads what the model was made for."""
        for what, made_for, ours in (
            ("prompt version", self.prompt_version, PROMPT_VERSION),
            ("action space", self.action_space, ACTION_SPACE_HASH),
            ("feature schema", self.feature_schema, FEATURE_SCHEMA),
        ):
            if made_for != ours:
                raise ManifestMismatch(
                    f"model {self.model_version} was made for {what} {made_for}, this service has {ours}: "
                    f"retrain the model, or serve it with the release it was made for"
                )
