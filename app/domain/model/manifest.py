"""A model version: immutable, described by a manifest that is written last and verified before
serving."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from app.domain.canonical import content_hash
from app.domain.errors import ManifestMismatch, ModelFileError
from app.domain.features import FEATURE_SCHEMA, SERVED_SCHEMAS
from app.domain.fields import Hash, Instant, Record, ShortText, absent
from app.domain.model.actions import ACTION_SPACE_HASH, ACTIONS
from app.domain.model.outlook import OutlookCalibration
from app.domain.model.prompt import PROMPT_VERSION
from app.domain.model.questions import BY_NAME, QUESTIONS, QuestionName

MANIFEST_NAME = "manifest.json"
PRIMARY_ALIAS = "shadow"
"""The alias that names the primary version."""
VERSION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Calibration(Record):
    """How label log-probabilities become a proposal: softmax((log p - bias) / temperature); and
    those of further questions an outlook."""

    bias: tuple[float, ...] = Field(
        (0.0,) * len(ACTIONS), description="per label, nats; what the model says without a scenario"
    )
    temperature: float = Field(1.0, gt=0)
    min_label_mass: float = Field(
        0.0, ge=0, le=1, description="below this share of probability on labels the policy abstains"
    )
    outlook: OutlookCalibration | None = Field(
        None, exclude_if=absent, description="of the questions that the version answers; none: none"
    )

    @property
    def asked(self) -> tuple[QuestionName, ...]:
        """The questions that the version answers beside its action, in the order of `QUESTIONS`."""
        if self.outlook is None:
            return ()
        return tuple(q.name for q in QUESTIONS if q.name in self.outlook.questions)

    @model_validator(mode="after")
    def one_bias_per_action(self) -> Self:
        """The bias has the action space's length."""
        if len(self.bias) != len(ACTIONS):
            raise ValueError(
                f"bias has {len(self.bias)} entries, the action space has {len(ACTIONS)}"
            )
        return self


class BaseModelRef(Record):
    """The model that an adapter was trained on. Found by its files: the same ones, imported on
    another day, have another manifest. `BaseModelRef.of(manifest)` makes one."""

    model_version: str = Field(pattern=VERSION_PATTERN)
    manifest_hash: Hash = Field(
        description="of the manifest that it had when the adapter was trained"
    )
    weights_hash: Hash = Field(description="as `ModelManifest.weights_hash()` gives it")
    files_hash: Hash | None = Field(
        None, description="as `ModelManifest.files_hash()` gives it; versions before it have none"
    )

    def as_json(self) -> dict[str, Any]:
        """As every record; a reference without `files_hash` stays as it was written."""
        document = super().as_json()
        if self.files_hash is None:
            del document["files_hash"]
        return document

    @classmethod
    def of(cls, manifest: ModelManifest) -> Self:
        """The reference to a base model. Raises `ModelFileError` when it has no weights, or is an
        adapter itself."""
        if manifest.base is not None:
            raise ModelFileError(
                f"{manifest.model_version} is an adapter itself: an adapter needs a whole model as"
                " base"
            )
        return cls(
            model_version=manifest.model_version,
            manifest_hash=manifest.hash(),
            weights_hash=manifest.weights_hash(),
            files_hash=manifest.files_hash(),
        )


class ModelManifest(Record):
    """What a version is, what it was made for, and the hash of every file in its directory."""

    model_version: str = Field(pattern=VERSION_PATTERN)
    base_model: ShortText
    licence: ShortText
    created_at: Instant
    prompt_version: ShortText = PROMPT_VERSION
    action_space: Hash = ACTION_SPACE_HASH
    feature_schema: ShortText = FEATURE_SCHEMA
    calibration: Calibration = Calibration()
    files: dict[str, Hash] = Field(
        description="file name to content hash; safetensors only, never pickle"
    )
    provenance: dict[str, Any] = Field(
        default_factory=dict, description="hashes of data, code and config; metrics"
    )
    base: BaseModelRef | None = Field(None, description="for an adapter, the model it belongs to")

    def as_json(self) -> dict[str, Any]:
        """As every record; a whole model has no `base`, as before there were adapters, and keeps
        its hash."""
        document = super().as_json()
        if self.base is None:
            del document["base"]
        else:
            document["base"] = self.base.as_json()
        return document

    def files_hash(self) -> str:
        """Hash of the names and bytes of all files."""
        return content_hash(self.files)

    def base_files_hash(self) -> str | None:
        """`files_hash` of the model that an adapter was trained on; None when nothing tells. An
        adapter of a release that did not write it down has those files in its provenance, from
        the stage that read the base."""
        if self.base is None or self.base.files_hash is not None:
            return self.base.files_hash if self.base is not None else None
        found: Any = self.provenance
        for key in ("config", "encoded", "base"):
            found = found.get(key) if isinstance(found, dict) else None
        return content_hash(found) if isinstance(found, dict) else None

    def has_weights(self) -> bool:
        """Whether there are safetensors among the files."""
        return any(name.endswith(".safetensors") for name in self.files)

    def weights_hash(self) -> str:
        """Hash of the names and bytes of the weights alone. Raises `ModelFileError` when there are
        none."""
        if not self.has_weights():
            raise ModelFileError(
                f"model {self.model_version} lists no safetensors: it cannot be a base model"
            )
        return content_hash(
            {name: value for name, value in self.files.items() if name.endswith(".safetensors")}
        )

    def require_compatible(self) -> None:
        """Raise `ManifestMismatch` unless this code renders and reads what the model was made
        for."""
        for what, made_for, ours in (
            ("prompt version", self.prompt_version, (PROMPT_VERSION,)),
            ("action space", self.action_space, (ACTION_SPACE_HASH,)),
            ("feature schema", self.feature_schema, SERVED_SCHEMAS),
        ):
            if made_for not in ours:
                raise ManifestMismatch(
                    f"model {self.model_version} was made for {what} {made_for}, this service has"
                    f" {ours[-1]}: retrain the model, or serve it with the release it was made for"
                )
        outlook = self.calibration.outlook
        for name, asked in outlook.questions.items() if outlook is not None else ():
            if asked.question != BY_NAME[name].hash:
                raise ManifestMismatch(
                    f"model {self.model_version} was trained with another question {name.value}"
                    f" ({asked.question}): retrain the model, or serve it with the release it was"
                    " made for"
                )
