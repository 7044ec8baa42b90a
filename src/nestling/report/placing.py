"""Where labels of points go on a picture, so that they cover neither each other nor what else is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LINE = 14
"""Height of a label, pixels."""
ABOVE, BESIDE = 6, 5
"""Pixels between a point and its label: up to one above, and down and right to one below."""
STEP = LINE / 2
NEAR = 2
FARTHEST = 40
"""Steps that a label may move away from its point; where all are taken it stands where it covers least."""


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels from the top left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Return whether the two share more than an edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


@dataclass(frozen=True)
class Point:
    """What is to be labelled: a place in pixels, the width of its text, and where the text may stand.

    Attributes:
        upwards: the label ends at the point and stands above it, as high as need be; otherwise it stands close above,
            or begins at the point and stands below it, as low as need be.
    """

    x: float
    y: float
    width: float
    upwards: bool = True


@dataclass(frozen=True)
class Label:
    """Where a label stands.

    Attributes:
        below: whether it stands below and right of its point, not above and left.
        away: pixels between it and its point.
    """

    box: Box
    below: bool
    away: float


def place(points: Sequence[Point], drawn: Sequence[Box] = ()) -> list[Label]:
    """Place labels one after the other, each as near to its point as those before it and `drawn` allow.

    Args:
        points: from left to right where labels go up, so that no line from a label to its point meets a label.
        drawn: what no label should cover.
    """
    taken = list(drawn)
    placed = []
    for point in points:
        # The first of the best: candidates come nearest first.
        label = min(_candidates(point), key=lambda one: sum(one.box.overlaps(other) for other in taken))
        placed.append(label)
        ends = sorted((label.box.top if label.below else label.box.bottom, point.y))
        taken += [label.box, Box(point.x - 2, ends[0], point.x + 2, ends[1])]
    return placed


def _candidates(point: Point) -> Iterator[Label]:
    for step in range(FARTHEST):
        if point.upwards or step < NEAR:
            right, bottom = point.x, point.y - ABOVE - step * STEP
            yield Label(Box(right - point.width, bottom - LINE, right, bottom), False, point.y - bottom)
        if not point.upwards:
            left, top = point.x + BESIDE, point.y + BESIDE + step * STEP
            yield Label(Box(left, top, left + point.width, top + LINE), True, top - point.y)
