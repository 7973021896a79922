"""How numbers are put for a person: the examples of the docstrings, and the edges."""

from __future__ import annotations

import doctest

import pytest

from gnpcli.terminal import words


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(words)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1.0 min"), (3_600, "1.0 h"), (100_000, "1.2 days")],
)
def test_a_duration_is_told_in_its_largest_unit(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize("tell", [words.number, words.percent, words.duration, words.size])
def test_a_value_that_is_not_there_is_a_dash(tell):
    assert tell(None) == "-"


def test_an_evaluation_names_its_top5_error_only_where_it_was_measured():
    result = {"error_rate": 0.1, "loss": 0.5}
    assert words.evaluation(result, "val") == "val error 10.00 %  loss 0.5000"
    with_top5 = words.evaluation(result | {"top5_error_rate": 0.01}, "val")
    assert with_top5 == "val error 10.00 %  top-5 error 1.00 %  loss 0.5000"
