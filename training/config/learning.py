"""Configuration of what makes a model: one strict class per stage."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from app.domain.model.prompt import IN_DIGITS, LineKind
from training.config.section import HomePath, Section


class EncodeConfig(Section):
    """The one base pass per scenario."""

    base: HomePath | None = Field(
        None, description="model directory; none: the bundled small model"
    )
    leave_out: tuple[LineKind, ...] = Field(
        (),
        description=(
            "kinds of the prompt's lines that are not read, since adapter.numbers says the same:"
            " fewer tokens, faster decisions"
        ),
    )
    batch: int = Field(8, ge=1)
    shard: int = Field(
        128, ge=1, description="scenarios per file of the cache, the unit of resuming"
    )
    most_gib: float = Field(
        16.0, gt=0, description="keys and values of all prompts together take no more of the disk"
    )

    @model_validator(mode="after")
    def only_digits_are_left_out(self) -> Self:
        """Words have no number that says the same."""
        if words := sorted(set(self.leave_out) - IN_DIGITS):
            raise ValueError(
                f"{', '.join(words)} cannot be left out, only {', '.join(sorted(IN_DIGITS))}"
            )
        return self


class NetworkConfig(Section):
    """The teacher's small transformers."""

    members: int = Field(2, ge=0, le=20, description="0: they do not compete")
    components: int = Field(
        16, ge=1, description="principal components kept of each prompt line's hidden states"
    )
    width: int = Field(32, ge=8)
    layers: int = Field(1, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    weight_decay: float = Field(0.05, ge=0)
    epochs: int = Field(4, ge=1)
    batch: int = Field(128, ge=1)

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> Self:
        """Attention splits the width into equal heads."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class TeacherConfig(Section):
    """The teacher. Its numbers were chosen by walk-forward within 2018-2022."""

    folds: int = Field(5, ge=2)
    ridge: float = Field(2000.0, gt=0, description="strength of the linear learner's penalty")
    learning_rate: float = Field(0.03, gt=0, le=1)
    trees: int = Field(120, ge=1)
    leaves: int = Field(8, ge=2, description="of each tree")
    least_rows: int = Field(60, ge=1, description="that a leaf is made of")
    l2: float = Field(10.0, ge=0)
    network: NetworkConfig = NetworkConfig()
    seed: int = Field(0, ge=0)


class PreferencesConfig(Section):
    """Which pairs."""

    margin: float = Field(
        0.02, gt=0, description="least difference of expectation between chosen and rejected, in R"
    )
    per_scenario: int = Field(4, ge=1, description="at most so many pairs of a scenario")
    model_margin: float = Field(0.0, ge=0, description="the same in the teacher's standard errors")
    seed: int = Field(0, ge=0)


class AdapterConfig(Section):
    """LoRA. Activated: only the prompt's tail is adapted, so that the base pass is shared."""

    kind: Literal["activated", "ordinary"] = "activated"
    rank: int = Field(16, ge=1, le=256)
    alpha: float = Field(32.0, gt=0)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    numbers: int = Field(
        0,
        ge=0,
        description=(
            "tokens of the tail to whose embeddings a map of the scenario's features is added; 0:"
            " the version reads the text alone"
        ),
    )

    @model_validator(mode="after")
    def numbers_are_read_at_the_tail(self) -> Self:
        """An ordinary adapter is merged into a plain model, which takes text alone."""
        if self.numbers and self.kind != "activated":
            raise ValueError("numbers need kind = 'activated'")
        return self


class TrainingConfig(Section):
    """What warm-up and algorithms share. Defaults were tuned on a planted rule (`python -m
    bench.learning.planted`), not on markets."""

    epochs: int = Field(6, ge=1)
    batch: int = Field(8, ge=1, description="scenarios per optimiser step, over all processes")
    accumulate: int = Field(
        1, ge=1, description="parts that a batch is computed in, to bound memory"
    )
    learning_rate: float = Field(3e-3, gt=0, le=1)
    ramp: float = Field(0.1, ge=0, lt=1, description="share of steps with a rising learning rate")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    supervised: float = Field(
        0.05, ge=0, description="weight of the supervised loss mixed in; 0: none"
    )
    dialogue_every: int = Field(
        4, ge=0, description="steps from one dialogue of the agent to the next; 0: none"
    )
    questions: float = Field(
        3.0,
        ge=0,
        description=(
            "weight of the questions' mean log score: at 3 each weighs as the action does; 0: they"
            " are not asked, and the version answers none"
        ),
    )
    beta: float = Field(
        0.1,
        gt=0,
        description="strength of the pull to the reference policy; R that a nat of score means",
    )
    min_entropy: float = Field(
        0.02, ge=0, description="nats, mean of rows; a policy below it has collapsed"
    )
    max_majority: float = Field(
        0.98,
        gt=0,
        le=1,
        description="mean probability of the most likely action; a policy above it has collapsed",
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def batch_divides(self) -> Self:
        """A batch is computed in equal parts."""
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} is not a multiple of accumulate {self.accumulate}"
            )
        return self


class WarmUpConfig(TrainingConfig):
    """The supervised warm-up that the preference algorithms start from; its result is their
    reference policy."""

    target: Literal["optimum", "best", "agent"] = Field(
        "optimum",
        description=(
            "what it imitates: the optimum of expected utility under KL (with beta), each"
            " scenario's best action, or, an ablation, the agent's own"
        ),
    )
    epochs: int = Field(5, ge=1)


class AlgorithmConfig(TrainingConfig):
    """What all algorithms share."""

    start: Literal["base", "warm_up"] = Field(
        "base", description="the policy starts as the base model, or warmed up"
    )


class ExpectedConfig(AlgorithmConfig):
    """Expected utility under KL: its closed-form optimum distilled, or regressed, or its
    gradient."""

    algorithm: Literal["expected"] = "expected"
    objective: Literal["distil", "regress", "gradient"] = Field(
        "distil",
        description=(
            "all have one optimum; `regress` weighs by how an action's worth differs between"
            " scenarios, however little that is"
        ),
    )


class DpoConfig(AlgorithmConfig):
    """Direct preference optimisation."""

    algorithm: Literal["dpo"] = "dpo"
    start: Literal["base", "warm_up"] = "warm_up"
    epochs: int = Field(2, ge=1)
    beta: float = Field(
        0.5, gt=0, description="at 0.1 it collapses where the teacher is sure of most pairs"
    )
    learning_rate: float = Field(5e-4, gt=0, le=1)


class PpoConfig(AlgorithmConfig):
    """Proximal policy optimisation on sampled actions."""

    algorithm: Literal["ppo"] = "ppo"
    start: Literal["base", "warm_up"] = "warm_up"
    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(5e-4, gt=0, le=1)
    beta: float = Field(0.2, gt=0)
    clip: float = Field(0.2, gt=0)
    inner_epochs: int = Field(
        2, ge=1, description="optimiser steps on one batch of sampled actions"
    )
    value: float = Field(0.5, ge=0, description="weight of the value loss")
    entropy: float = Field(0.02, ge=0, description="weight of the entropy bonus")
    samples: int = Field(10, ge=1, description="actions sampled per scenario and epoch")


class RrhfConfig(AlgorithmConfig):
    """Ranking of k candidates with a supervised term."""

    algorithm: Literal["rrhf"] = "rrhf"
    start: Literal["base", "warm_up"] = "warm_up"
    epochs: int = Field(2, ge=1)
    learning_rate: float = Field(5e-4, gt=0, le=1)
    candidates: int = Field(4, ge=2, le=10)
    best: float = Field(
        1.0, ge=0, description="weight of the cross-entropy on the best candidate; the paper has 1"
    )


AnyAlgorithm = ExpectedConfig | DpoConfig | PpoConfig | RrhfConfig
"""Every algorithm's settings; a new one is added here and in learning/algorithms/table.py."""
Algorithm = Annotated[AnyAlgorithm, Field(discriminator="algorithm")]
ALGORITHMS: dict[str, type[AnyAlgorithm]] = {
    settings.model_fields["algorithm"].default: settings for settings in get_args(AnyAlgorithm)
}


class TargetsConfig(Section):
    """What the policy is trained on: the teacher's expectation. Anything else is an ablation."""

    source: Literal["teacher", "outcomes"] = Field(
        "teacher",
        description=(
            "the teacher's expectation of every action, out of fold; or, an ablation, realised"
            " outcomes, whose distilled optimum is what was often best in hindsight, not what earns"
            " most"
        ),
    )
    risk_aversion: float = Field(
        0.1,
        ge=0,
        le=1000,
        description=(
            "what a unit of variance costs, in R of the agent's plan, where the plan has the usual"
            " stake; others in proportion: utility is mean less so many times variance; at 0 the"
            " largest size is the best of whatever pays"
        ),
    )
    usual_stake: float = Field(
        0.001, gt=0, description="risk of a usual plan over the account's equity"
    )
    centre: bool = Field(
        False,
        description=(
            "an ablation: subtract each action's mean over the training scenarios; the policy then"
            " approves the better half also where everything loses"
        ),
    )
    shuffled: bool = Field(
        False,
        description=(
            "an ablation: deal the training scenarios' rewards to each other at random; what is"
            " learned then, and seems to earn something, is an error of the pipeline"
        ),
    )
