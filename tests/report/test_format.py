"""Figures as they are printed, against texts written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.report.format import bounds, label, p_equation, p_value, percent, points, size, stored_as


def test_percentages_carry_a_sign():
    assert (percent(1.25), percent(-0.04), percent(None)) == ("+1.2%", "-0.0%", "")


def test_measures_are_written_as_the_field_writes_them():
    assert [label(name) for name in ("mrr@10", "ndcg@5", "recall@10")] == ["MRR@10", "nDCG@5", "recall@10"]


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.00009, "<.0001"),
        (0.0001, ".0001"),
        (0.00044, ".0004"),
        (0.001, ".001"),
        (0.0123, ".012"),
        (0.0496, ".0496"),
        (0.04996, ".04996"),
        (0.05, ".050"),
        (0.9996, "1.000"),
        (1.0, "1.000"),
    ],
)
def test_p_is_printed_as_in_papers(p: float, text: str):
    assert p_value(p) == text


@given(st.floats(1e-4, 1))
def test_a_printed_p_is_on_the_same_side_of_the_level(p: float):
    if abs(p - 0.05) > 1e-7:
        assert (float(p_value(p)) < 0.05) == (p < 0.05)


def test_intervals_are_written_in_few_characters():
    assert bounds(0.80123, 0.83456) == ".8012-.8346"
    assert bounds(0.99, 1.0) == ".9900-1.0000"
    assert bounds(None, None) == ""


def test_points_are_signed():
    assert [points(value) for value in (0.01234, -0.5, 0.0)] == ["+1.23", "-50.00", "+0.00"]


def test_a_p_is_an_equation_within_a_sentence():
    assert [p_equation(p) for p in (0.0123, 0.00009)] == ["p = .012", "p < .0001"]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_400, "999 kB"),
        (999_500, "1.00 MB"),
        (30_720_000, "30.7 MB"),
        (153_600_000_000, "154 GB"),
        (2e18, "2000 PB"),
    ],
)
def test_sizes_have_three_digits_and_decimal_units(n_bytes: float, text: str):
    assert size(n_bytes) == text


def test_cells_are_put_in_words():
    assert stored_as("int8", "none", 0) == "int8"
    assert stored_as("binary", "pca", 4, long=True) == "binary, PCA-rotated, rescored x4"
