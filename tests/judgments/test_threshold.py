"""Histogram, dip and candidate thresholds, against counts by hand and the real data's known shape."""

from __future__ import annotations

import numpy as np
import pytest

from nestling.judgments.threshold import candidates, dip, histogram


def test_few_distinct_scores_get_a_bar_each():
    bars = histogram(np.array([1.0, 3.0, 3.0]))
    assert [(bar.low, bar.high, bar.count) for bar in bars] == [(1.0, 1.0, 1), (3.0, 3.0, 2)]


def test_many_distinct_scores_are_binned_and_all_counted():
    scores = np.linspace(0, 1, 1000)
    bars = histogram(scores)
    assert len(bars) == 20
    assert sum(bar.count for bar in bars) == 1000


def test_the_dip_lies_between_two_humps():
    scores = np.repeat([1.0, 1.25, 1.5, 2.5, 2.75, 3.0], [10, 50, 10, 10, 60, 10])
    assert dip(scores, (1.0, 3.0)) == pytest.approx(2.0, abs=0.05)


def test_one_hump_has_no_dip():
    assert dip(np.repeat([1.8, 2.0, 2.2], [10, 50, 10]), (1.0, 3.0)) is None


def test_a_hump_at_the_end_of_the_scale_counts_as_one():
    scores = np.repeat([1.0, 3.0], [50, 50])
    assert dip(scores, (1.0, 3.0)) == pytest.approx(2.0, abs=0.05)


def test_values_that_only_rare_rater_counts_reach_are_not_taken_for_a_dip():
    # Means of three raters, with a handful of fours between them: the humps are at 2.2 and 2.9.
    scores = np.repeat([1.67, 2.0, 2.25, 2.33, 2.5, 2.67, 2.75, 3.0], [60, 110, 1, 160, 1, 150, 1, 190])
    assert dip(scores, (1.0, 3.0)) == pytest.approx(2.5, abs=0.06)


def test_a_scale_of_one_point_has_no_dip():
    assert dip(np.array([2.0, 2.0]), (2.0, 2.0)) is None


def test_a_candidate_keeps_what_lies_above_it():
    found = candidates(np.array([1.0, 2.0, 2.0, 3.0]))
    assert [(c.threshold, c.kept, c.share) for c in found] == [(1.0, 3, 0.75), (2.0, 1, 0.25)]


def test_many_scores_give_a_handful_of_candidates_that_all_keep_something():
    found = candidates(np.random.default_rng(0).random(500))
    assert 5 <= len(found) <= 12
    assert all(c.kept > 0 for c in found)
