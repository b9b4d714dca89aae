"""One table in a TOML file for each decision model elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.errors import DeciderError
from app.policy.deciders.table import keys_of, read_deciders

WHOLE = """
[jev]
protocol = "systemone"
url = "https://api.example.com/"
model = "jev-latest"
key = "JEV_KEY"

[local]
protocol = "chat"
url = "http://127.0.0.1:8000"
model = "small"
question = "trade"
order = ["J", "A"]
masked = true
share = 0.5
"""


def file(folder: Path, text: str) -> Path:
    path = folder / "deciders.toml"
    path.write_text(text)
    return path


def test_a_table_is_a_version_whose_name_ends_with_the_hash_of_what_is_asked(
    tmp_path: Path,
) -> None:
    jev, local = read_deciders(file(tmp_path, WHOLE))
    assert (jev.name, jev.url) == ("jev", "https://api.example.com")
    assert jev.manifest().model_version.startswith("jev-")
    assert local.inquiry().order == ("J", "A")
    assert local.inquiry().masked
    again, _ = read_deciders(file(tmp_path, WHOLE.replace('key = "JEV_KEY"', "per_day = 5")))
    assert again.manifest() == jev.manifest(), "what it may spend is not what it is"
    for other in ('order = "reversed"', "masked = true", 'instructions = "Trade?"'):
        changed, _ = read_deciders(file(tmp_path, WHOLE.replace('key = "JEV_KEY"', other)))
        assert changed.manifest().model_version != jev.manifest().model_version, other


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    wrong = """
[one]
protocol = "telepathy"
url = "https://a.example"
model = "m"
[two]
protocol = "chat"
url = "https://user:secret@a.example"
model = "m"
speed = 9
[three]
protocol = "chat"
url = "http://a.example"
model = "m"
key = "KEY"
[four]
protocol = "chat"
url = "https://a.example"
model = "m"
order = ["A", "B"]
[six]
protocol = "chat"
url = "https://a.example"
model = "m"
cost_per_day = 0.5
[Five]
protocol = "chat"
url = "https://a.example"
model = "m"
"""
    with pytest.raises(DeciderError) as refused:
        read_deciders(file(tmp_path, wrong))
    told = str(refused.value)
    for part in (
        "[one] Declared: protocol",
        "no user, query or fragment",
        "speed: Extra inputs",
        "[three] Declared: (whole document): Value error, a key is sent over https",
        "[four]",
        "each of A, B, C",
        "[six] Declared: (whole document): Value error, cost_per_day needs price_in",
        "[Five] Declared: name",
    ):
        assert part in told
    assert "secret" not in told


@pytest.mark.parametrize("text", ["protocol = 'chat'", "= 1", "\x00"])
def test_what_is_no_file_of_tables_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DeciderError):
        read_deciders(file(tmp_path, text))


def test_a_key_comes_from_the_environment_or_the_start_is_refused(tmp_path: Path) -> None:
    declared = read_deciders(file(tmp_path, WHOLE))
    assert keys_of(declared, lambda name: {"JEV_KEY": "s3cret"}[name]) == {
        "jev": "s3cret",
        "local": None,
    }
    with pytest.raises(DeciderError, match=r"not set: JEV_KEY of \[jev\]"):
        keys_of(declared, lambda name: None)
