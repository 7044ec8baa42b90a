"""How small a model's embeddings can get: the smallest cell of its grid that keeps enough, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestling.errors import InputError
from nestling.evaluation.recommend import MANY, kept_by, smallest
from nestling.report.grid_view import share, stored_as
from nestling.report.page_change import sentence
from nestling.report.page_data import PageData
from nestling.report.tables import label

KEEP = 0.98
"""Share of the full embedding's quality that a smaller one has to keep to be recommended."""


@dataclass(frozen=True)
class Small:
    """The smallest cell that keeps `KEEP` of a variant's quality.

    Attributes:
        row: the cell's row of `advice.KEPT`; None where no cell below the full one keeps enough.
        text: a sentence with its figures.
    """

    row: dict[str, Any] | None
    text: str

    @property
    def cell(self) -> str:
        """The cell in words, empty where there is none."""
        if self.row is None:
            return ""
        stored = stored_as(self.row["precision"], self.row["rotation"], self.row["oversampling"])
        return f"{self.row['dim']:,} dims in {stored} ({self.row['bytes']:,} bytes a vector)"


def how_small(data: PageData, variant: str) -> Small:
    """Find the smallest cell of a variant that keeps `KEEP` of its full quality in the first measure, on test.

    Of many cells it is one whose interval's lower end keeps as much, since the smallest is likely the luckiest, too.
    """
    measure = data.measures[0]
    try:
        kept = kept_by(data.cells(variant), measure)
    except InputError as error:
        return Small(None, f"{sentence(str(error))}.")
    full = kept.filter(kept["precision"] == "float32", kept["rotation"] == "none", kept["oversampling"] == 0)
    whole = full.sort("dim").row(-1, named=True)
    smaller = kept.filter(kept["bytes"] < whole["bytes"], kept["oversampling"] == 0)
    if smaller.is_empty():
        return Small(None, f"Only the full size of {variant}, {whole['dim']:,} dims, was measured.")
    strict = smaller.height > MANY
    cell = smallest(smaller, KEEP, strict=strict)
    if cell is None:
        best = smaller.sort("value", "bytes", descending=[True, False]).row(0, named=True)
        stored = stored_as(best["precision"], best["rotation"], best["oversampling"])
        return Small(
            None,
            f"No smaller embedding of {variant} keeps {KEEP:.0%} of {label(measure)}"
            f"{' at the lower end of its interval' if strict else ''}; the best, {best['dim']:,} dims "
            f"in {stored}, keeps {_kept(best)}.",
        )
    found = smaller.filter(
        smaller["dim"] == cell.dim, smaller["precision"] == cell.precision, smaller["rotation"] == cell.rotation
    ).row(0, named=True)
    one = Small(found, "")
    safe = "" if found["kept_low"] >= KEEP else f", and the interval reaches below {KEEP:.0%}"
    times = whole["bytes"] / found["bytes"]
    text = (
        f"{variant} at {one.cell}, {times:.3g} times smaller than {whole['bytes']:,}, keeps {_kept(found)} of "
        f"{label(measure)}: {found['value']:.4f} against {whole['value']:.4f} at full size{safe}."
    )
    return Small(found, text)


def _kept(row: dict[str, Any]) -> str:
    return f"{share(row['kept'])} (interval {share(row['kept_low'])} to {share(row['kept_high'])})"
