"""Labels on a picture: near to their points, and never over each other."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from nestling.report.placing import LINE, Box, Point, place


def test_a_label_alone_ends_at_its_point_and_stands_just_above():
    (label,) = place([Point(100.0, 50.0, 60.0)])
    assert label.box == Box(40, 44 - LINE, 100, 44)
    assert (label.below, label.away) == (False, 6)


def test_a_label_that_meets_another_is_lifted_above_it():
    first, second = place([Point(100.0, 50.0, 60.0), Point(120.0, 50.0, 60.0)])
    assert second.box.bottom <= first.box.top
    assert second.away > first.away


def test_what_may_not_rise_goes_below_where_it_is_crowded_above():
    crowded = [Box(0.0, 0.0, 200.0, 49.0)]
    (label,) = place([Point(100.0, 50.0, 60.0, upwards=False)], crowded)
    assert label.below
    assert label.box == Box(105.0, 55.0, 165.0, 55.0 + LINE)
    (label,) = place([Point(100.0, 50.0, 60.0)], crowded)
    assert label.box.bottom <= 0


def test_where_all_is_taken_a_label_stands_where_it_covers_least():
    everywhere = [Box(-1e4, -1e4, 1e4, 1e4), Box(0.0, 50.0, 200.0, 1e4)]
    (label,) = place([Point(100.0, 50.0, 60.0, upwards=False)], everywhere)
    assert not label.below


rising = st.lists(st.tuples(st.floats(1, 200), st.floats(0, 60)), min_size=1, max_size=15).map(
    lambda steps: [(sum(x for x, _ in steps[: n + 1]), -sum(y for _, y in steps[: n + 1])) for n in range(len(steps))]
)


@given(rising, st.floats(20, 110))
def test_labels_of_a_rising_front_cover_neither_each_other_nor_its_points(
    points: list[tuple[float, float]], width: float
):
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    labels = place([Point(x, y, width) for x, y in points], marks)
    boxes = [label.box for label in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for box, (x, _) in zip(boxes, points, strict=True):
        assert not any(box.overlaps(mark) for mark in marks if mark.right < x)


@given(rising)
def test_no_line_from_a_label_to_its_point_goes_through_another_label(points: list[tuple[float, float]]):
    labels = place([Point(x, y, 60.0) for x, y in points])
    for (x, y), own in zip(points, labels, strict=True):
        line = Box(x - 0.5, own.box.bottom, x + 0.5, y)
        assert not any(line.overlaps(other.box) for other in labels if other is not own)
