"""What errors say."""

from __future__ import annotations

from app.domain.errors import ModelFileError


def test_what_a_directory_of_a_stranger_names_is_told_in_one_line() -> None:
    told = ModelFileError("config.json: \n\x1b[2J is 2147483649, more than any model has")
    assert str(told) == r"config.json: \n\x1b[2J is 2147483649, more than any model has"
