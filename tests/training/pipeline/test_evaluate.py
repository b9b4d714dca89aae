"""What an evaluation tells: truth and doubts in its report, other costs, and a champion that must
be beaten."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from app.domain.errors import UnknownVersion
from app.domain.model.questions import QuestionName
from app.policy.versions.store import load_manifest, report_beside
from tests.training.support.rebuilds import NOW, RIVAL, config_in, read_by, shop_of
from training.config.file import RebuildConfig
from training.config.judging import Kind
from training.config.learning import ALGORITHMS
from training.config.section import ConfigError
from training.judging.contest.arms import HEURISTICS
from training.judging.gate.looks import FILE as LOOKS
from training.judging.gate.looks import Look
from training.judging.report.doubts import STRESSES
from training.outcomes.labels import AGENT, Labels
from training.pipeline.evaluate import Evaluated, evaluate, read_report, terms_of
from training.scenarios.table import ScenarioError

TRUTH = "Share of the best achievable reward"
REWARDS = "Mean reward per scenario, net of costs"
STRESS = "The same answers under worse conditions"
POWER = "Decisions needed to see an edge with 80% power"
OFF_POLICY = "Value of the policy as a distribution, from one logged action per scenario"
PATHS = "Simple rivals in development: combinatorial purged paths"
MEAN = "mean R per scenario"
Rows = Mapping[str, Mapping[str, Any]]


def report_of(done: Evaluated) -> dict[str, Any]:
    return dict(json.loads((done.artifact / "report.json").read_text()))


def tables(done: Evaluated) -> dict[str, Rows]:
    """Rows of every table by its caption, each by its first cell."""
    found = [table for section in report_of(done)["sections"] for table in section["tables"]]
    return {
        each["caption"]: {next(iter(row.values()))["value"]: row for row in each["rows"]}
        for each in found
    }


def said(done: Evaluated, title: str) -> str:
    (section,) = [each for each in report_of(done)["sections"] if each["title"] == title]
    return " ".join(section["text"])


def values(rows: Rows, column: str) -> dict[str, float]:
    return {name: row[column]["value"] for name, row in rows.items()}


def test_the_report_lies_beside_the_version_for_its_page(evaluated: Evaluated) -> None:
    assert (
        report_beside(evaluated.version).read_bytes()
        == (evaluated.artifact / "report.html").read_bytes()
    )


def test_reasons_in_the_report_lead_to_what_is_behind_them(evaluated: Evaluated) -> None:
    html = (evaluated.artifact / "report.html").read_text()
    (place,) = re.findall(r'<h2 id="(\w+)">How much data would it take\?</h2>', html)
    assert f'<a href="#{place}">too few opportunities to judge by</a>' in html
    assert "Learning, on the scenarios that it learned from" in html
    assert "reasons more." in re.findall(r'<p class="headline">(.*?)</p>', html, re.DOTALL)[0]


def test_a_share_of_the_best_is_what_an_arm_earns_over_what_could_be_earned(
    evaluated: Evaluated,
) -> None:
    rows = tables(evaluated)[TRUTH]
    assert {
        "policy",
        "policy dpo",
        "base model",
        "agent",
        "always approve",
        "logistic regression",
    } <= set(rows)
    earned, shares = values(rows, MEAN), values(rows, "share of best")
    best = {name: earned[name] / share for name, share in shares.items() if abs(share) > 1e-3}
    assert len(best) > 4
    assert np.ptp(list(best.values())) < 1e-9, "every arm is measured against the same best"
    (found,) = {round(each, 3) for each in best.values()}
    assert found > 0
    assert f"one could earn {found:.3f} R a scenario here" in said(
        evaluated, "The truth, known here"
    )
    assert max(earned.values()) <= found
    assert rows["always approve"]["approves"]["value"] == 1.0


def test_answers_are_judged_again_under_worse_conditions(evaluated: Evaluated) -> None:
    found = tables(evaluated)
    rows = found[STRESS]
    assert (
        tuple(rows)
        == ("as it is", *STRESSES)
        == ("as it is", "costs doubled", "every order an hour late")
    )
    plain = values(found[REWARDS], MEAN)
    first = rows["as it is"]
    assert first["policy"]["value"] == pytest.approx(plain["policy"])
    assert first["policy - agent"]["value"] == pytest.approx(plain["policy"] - plain["agent"])
    assert first["policy - random veto"]["value"] == pytest.approx(
        plain["policy"] - plain["random veto"]
    )
    counts = values(rows, "scenarios")
    assert counts["costs doubled"] == counts["as it is"] >= counts["every order an hour late"] > 0
    assert rows["costs doubled"]["policy"]["value"] < first["policy"]["value"], (
        "the tiny policy trades"
    )


def test_r_per_trade_and_r_per_scenario_are_of_one_unit(evaluated: Evaluated) -> None:
    """An arm that trades all of them earns one and the same; every other its share of it."""
    rows = tables(evaluated)[REWARDS]
    per_trade = "mean R per trade"
    everything = rows["always approve"]
    assert everything["share traded"]["value"] == 1.0
    assert everything[MEAN]["value"] == pytest.approx(everything[per_trade]["value"], abs=1e-12)
    traded = [row for name, row in rows.items() if row["trades"]["value"] and name != "random veto"]
    assert len(traded) > 5
    count = everything["trades"]["value"]
    for row in traded:
        share = row["trades"]["value"] / count
        assert row[MEAN]["value"] == pytest.approx(share * row[per_trade]["value"], abs=1e-12)


def test_rollouts_hold_every_arm_on_every_scenario(evaluated: Evaluated) -> None:
    table = pl.read_parquet(evaluated.artifact / "rollouts.parquet")
    rows = tables(evaluated)[REWARDS]
    told = {row["arm"]: row for row in table.group_by("arm").agg(
        pl.len(), pl.col("r").mean(), pl.col("trades").sum()
    ).iter_rows(named=True)}  # fmt: skip
    assert set(told) == set(rows) - {"random veto"}
    for name, row in told.items():
        assert row["len"] == rows["always approve"]["trades"]["value"]
        assert row["r"] == pytest.approx(rows[name][MEAN]["value"], abs=1e-12)
        assert row["trades"] == rows[name]["trades"]["value"]
    plan = Labels.open(read_by(evaluated, "held_out: labels")).table.filter(
        pl.col("action") == AGENT
    )
    together = table.filter(pl.col("arm") == "always approve").join(plan, on="row")
    assert together["net"].to_numpy() == pytest.approx(together["net_right"].to_numpy())
    assert together["r"].to_numpy() == pytest.approx(together["reward"].to_numpy())


def test_the_decisions_that_an_edge_needs_shrink_with_its_square(evaluated: Evaluated) -> None:
    """z of 97.5 % is 1.959964, of 80 % 0.841621; the bound's distance from the mean is 1.959964
    standard errors."""
    rows = tables(evaluated)[POWER]
    differences = evaluated.report["verdict"]["differences"]
    assert set(rows) == set(differences)
    for name, row in rows.items():
        many, some, few = (row[f"{edge:g} R per decision"]["value"] for edge in (0.02, 0.05, 0.1))
        assert 25 * (few - 1) < many <= 25 * few
        assert 4 * (few - 1) < some <= 4 * few
        error = (differences[name]["value"] - differences[name]["low"]) / 1.959964
        exact = differences[name]["n"] * ((1.959964 + 0.841621) * error / 0.02) ** 2
        assert many == pytest.approx(math.ceil(exact), rel=1e-5, abs=1)


def test_what_a_log_would_have_told_stands_beside_what_is_known(evaluated: Evaluated) -> None:
    rows = tables(evaluated)[OFF_POLICY]
    assert tuple(rows) == (
        "inverse propensity",
        "self-normalised",
        "doubly robust",
        "all outcomes known",
    )
    scenarios = rows["all outcomes known"]["effective sample"]["value"]
    assert scenarios == values(tables(evaluated)[STRESS], "scenarios")["as it is"]
    for name in ("inverse propensity", "self-normalised", "doubly robust"):
        row = rows[name]
        assert row[MEAN]["low"] < row[MEAN]["value"] < row[MEAN]["high"]
        assert 1 <= row["effective sample"]["value"] <= scenarios
        assert row["largest weight"]["value"] > 1


def test_the_simple_rivals_are_seen_on_five_paths_before_the_held_out_period(
    evaluated: Evaluated,
) -> None:
    rows = tables(evaluated)[PATHS]
    assert set(rows) == set(HEURISTICS)
    for row in rows.values():
        mean = row["mean R per scenario: median [lowest, highest path]"]
        assert mean["n"] == 5
        assert mean["low"] <= mean["value"] <= mean["high"]
        assert 0 < row["share traded"]["value"] <= 1


def test_each_policy_and_rival_has_a_price(evaluated: Evaluated) -> None:
    rows = tables(evaluated)["What each costs"]
    assert set(rows) == {"policy", "policy dpo", *HEURISTICS}
    assert all(row["making it, CPU minutes"]["value"] >= 0 for row in rows.values())
    assert rows["policy"]["a decision, ms"]["value"] > 0


def test_a_period_may_be_judged_by_other_costs_than_were_trained_on(
    tmp_path: Path, tiny_base: Path
) -> None:
    free = config_in(tmp_path, tiny_base, evaluate__outcomes={"fee": 0.0})
    assert (terms_of(free).outcomes.fee, free.outcomes.fee) == (0.0, 0.001)
    late = STRESSES["every order an hour late"](terms_of(free).outcomes)
    assert (late.delay_s, late.fee) == (3600, 0.0)
    same = config_in(tmp_path, tiny_base)
    assert terms_of(same).outcomes == same.outcomes
    with pytest.raises(ValidationError, match="delay_s must be 0"):
        config_in(tmp_path, tiny_base, outcomes__delay_s=60)


@pytest.fixture(scope="module")
def second(
    evaluated: Evaluated, workplace: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> RebuildConfig:
    """The policy trained by DPO is the one to judge; everything of the evaluation before is at
    hand, in a copy."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(workplace / "artifacts", folder / "artifacts")
    shutil.copytree(tiny_base.parent, folder / "models")
    return config_in(folder, tiny_base, policy=RIVAL, publish__models=folder / "models")


@pytest.fixture(scope="module")
def challenged(second: RebuildConfig, evaluated: Evaluated) -> Evaluated:
    """Judged with the version of the evaluation before as champion."""
    lines: list[str] = []
    shop = shop_of(second, lines.append)
    done = evaluate(second, shop, NOW, champion=evaluated.version.name)
    built = {line.split(":")[0] for line in lines if "building" in line}
    assert built == {"answers (champion)", "checks", "evaluation"}, (
        "nothing is trained, encoded or labelled again"
    )
    return done


def test_a_champion_is_an_arm_and_must_be_beaten(
    challenged: Evaluated, evaluated: Evaluated
) -> None:
    before, now = (values(tables(done)[REWARDS], MEAN) for done in (evaluated, challenged))
    assert now["champion"] == before["policy"]
    assert now["policy"] == before["policy dpo"]
    assert now["agent"] == before["agent"]
    difference = challenged.report["verdict"]["differences"]["champion"]
    assert difference["value"] == pytest.approx(before["policy dpo"] - before["policy"])
    assert "champion" in tables(challenged)["Policy less rival, mean R per scenario"]
    assert "champion" in tables(challenged)["What the tuned policy earns more than simpler arms"]
    assert "champion" not in evaluated.report["verdict"]["differences"]


def test_a_second_version_is_a_second_look(challenged: Evaluated, second: RebuildConfig) -> None:
    assert challenged.artifact.facts["look"] == 2
    assert (
        report_of(challenged)["facts"]["versions that looked at this period"]
        == "2, this one included"
    )
    looks = map(json.loads, (second.publish.models / LOOKS).read_text().splitlines())
    earlier, newest = dict.fromkeys(look["version"] for look in looks)
    assert newest == challenged.version.name != earlier


def test_a_champion_of_unknown_name_is_one_clear_error_and_no_look(second: RebuildConfig) -> None:
    looks = (second.publish.models / LOOKS).read_text()
    finished = sorted(second.artifacts.glob("evaluation-*"))
    with pytest.raises(
        UnknownVersion, match="holds model version tiny-20200101-00000000"
    ) as refused:
        evaluate(second, shop_of(second), NOW, champion="tiny-20200101-00000000")
    assert "\n" not in str(refused.value)
    assert (second.publish.models / LOOKS).read_text() == looks
    assert sorted(second.artifacts.glob("evaluation-*")) == finished


@pytest.fixture(scope="module")
def judged(second: RebuildConfig, evaluated: Evaluated) -> Evaluated:
    """The version of the evaluation before, judged as somebody's who has but its directory."""
    lines: list[str] = []
    done = evaluate(second, shop_of(second, lines.append), NOW, entrant=evaluated.version.name)
    built = {line.split(":")[0] for line in lines if "building" in line}
    assert not built & {"policy (dpo)", "policy (expected)", "preferences"}, "nothing is trained"
    return done


def test_a_published_version_is_judged_as_its_rebuild_was(
    judged: Evaluated, evaluated: Evaluated
) -> None:
    assert judged.version.name == evaluated.version.name
    before, now = (values(tables(done)[REWARDS], MEAN) for done in (evaluated, judged))
    same = ["policy", "policy before vetoes", "agent", "always approve", "policy as veto"]
    assert {name: now[name] for name in same} == pytest.approx(
        {name: before[name] for name in same}
    )
    assert before.keys() - now.keys() == {"base model", "linear probe", "policy dpo", "warm-up"}
    assert report_of(judged)["facts"]["algorithm"] == "expected"
    codes = {refusal["code"] for refusal in judged.report["verdict"]["refusals"]}
    assert not codes & {"check_missing", "split_overlaps"}


def test_a_version_that_was_trained_on_days_that_judge_is_refused(
    second: RebuildConfig, evaluated: Evaluated
) -> None:
    end = load_manifest(evaluated.version).provenance["period"][1]
    inside = datetime.fromtimestamp(end, UTC).date()
    held_out = second.evaluate.held_out.model_copy(update={"since": inside})
    early = second.model_copy(
        update={"evaluate": second.evaluate.model_copy(update={"held_out": held_out})}
    )
    with pytest.raises(ConfigError, match="was trained on decisions up to"):
        evaluate(early, shop_of(early), NOW, entrant=evaluated.version.name)
    with pytest.raises(ConfigError, match="was trained on decisions up to"):
        evaluate(early, shop_of(early), NOW, champion=evaluated.version.name)


def test_bars_that_end_before_what_judges_are_refused_before_anything_is_trained(
    tmp_path: Path, tiny_base: Path
) -> None:
    early = config_in(tmp_path, tiny_base, market__synthetic__begins="2020-01-01")
    with pytest.raises(
        ConfigError, match=r"the bars end on 2020-\d\d-\d\d, and what judges begins on 2023-01-01"
    ):
        evaluate(early, shop_of(early), NOW)
    assert not (tmp_path / "artifacts").exists()


def test_a_symbol_that_has_no_bars_is_refused_before_anything_is_trained(
    tmp_path: Path, tiny_base: Path
) -> None:
    misspelt = config_in(tmp_path, tiny_base, evaluate__held_out__symbols=("PLANTED1USDT",))
    with pytest.raises(ScenarioError, match="no bars of PLANTED1USDT; there are"):
        evaluate(misspelt, shop_of(misspelt), NOW)
    assert not (tmp_path / "artifacts").exists()


def test_what_the_version_foretells_itself_is_judged_and_told_beside_its_teacher(
    evaluated: Evaluated,
) -> None:
    rows = tables(evaluated)["Calibration"]
    for question in ("win", "stopped"):
        own = rows[f"{question}, the version's"]["expected calibration error"]["value"]
        assert evaluated.report["verdict"]["numbers"][f"calibration error of {question}"] == own
        assert rows[f"{question}, the teacher's"]["log score, nats"]["value"] > 0
    numbers = tables(evaluated)["Range and expected R"]
    assert numbers.keys() == {
        "range, the version's",
        "range, the teacher's",
        "expected R, the version's",
    }
    assert 0 < numbers["range, the version's"]["log score of levels"]["value"] < 5
    manifest = load_manifest(evaluated.version)
    assert manifest.calibration.asked == tuple(QuestionName)
    assert manifest.provenance["questions"].keys() == set(QuestionName)
    assert "## What it foretells of the plan" in (evaluated.version / "README.md").read_text()


def test_a_verdict_is_found_until_another_version_was_looked_at(
    challenged: Evaluated, second: RebuildConfig, evaluated: Evaluated
) -> None:
    champion = evaluated.version.name
    again = evaluate(second, shop_of(second), NOW, champion=champion)
    lines: list[str] = []
    held_out = second.evaluate.held_out
    Look(second.publish.models, "lucky", second.market, held_out, NOW).note({"policy": 0.9})
    later = evaluate(second, shop_of(second, lines.append), NOW, champion=champion)
    assert {line.split(":")[0] for line in lines if "building" in line} == {"evaluation"}
    assert later.report["evidence"] != again.report["evidence"], "one more was tried"
    assert later.artifact.facts["look"] == again.artifact.facts["look"] + 1
    found = evaluate(second, shop_of(second, lines.append), NOW, champion=champion)
    assert found.artifact.path == later.artifact.path, "nobody looked in between"
    assert challenged.report == read_report(challenged.artifact, Kind.TRADER), "a signed one stays"


def test_a_rival_that_collapses_takes_no_part_and_is_told(second: RebuildConfig) -> None:
    lines: list[str] = []
    rival = ALGORITHMS["expected"](min_entropy=2.4)
    done = evaluate(second, shop_of(second, lines.append), NOW, [rival])
    why = "policy expected: takes no part: the policy collapsed"
    assert any(line.startswith(why) for line in lines)
    assert "policy expected" not in values(tables(done)[REWARDS], MEAN)
    assert "policy expected takes no part: the policy collapsed" in json.dumps(report_of(done))


def test_a_base_that_nothing_is_served_from_is_refused_before_anything_is_trained(
    tmp_path: Path, tiny_base: Path
) -> None:
    apart = config_in(tmp_path, tiny_base, publish__models=tmp_path / "models")
    with pytest.raises(UnknownVersion, match="holds model version"):
        evaluate(apart, shop_of(apart), NOW)
    assert not (tmp_path / "artifacts").exists()


def test_days_between_which_nothing_lies_are_refused(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(ValidationError, match="until is 2020-01-01, and since is 2023-01-01"):
        config_in(tmp_path, tiny_base, evaluate__held_out__until="2020-01-01")
