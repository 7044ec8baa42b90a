"""What an index is to be like: its settings, and what the study of a run's model knows for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nestling.config.names import PRECISIONS
from nestling.errors import InputError, unread
from nestling.retrieval.fusion import Fusion

AUTO = "auto"
EXACT_UP_TO = 50_000
"""Documents up to which all are scanned, where nothing else is asked for."""


@dataclass(frozen=True)
class IndexSettings:
    """Settings of an index.

    Attributes:
        shortlist: `DIM:PRECISION` of the codes that find candidates. `auto` is what a shrunk model brings along, else
            whole float32 vectors up to `exact_up_to` documents and one bit a dim beyond.
        exact_up_to: with more documents than this an inverted file is built.
        target: share of the exact top 10 that a search must find, on queries made of the documents' words.
        bm25: index the words too.
        language: of BM25's stemmer.
    """

    shortlist: str = AUTO
    exact_up_to: int = EXACT_UP_TO
    target: float = 0.995
    bm25: bool = True
    language: str = "english"

    def __post_init__(self) -> None:
        if self.shortlist != AUTO:
            self._parts()
        if self.exact_up_to < 0:
            raise InputError(f"--exact-up-to must be 0 or more, not {self.exact_up_to}")
        if not 0 < self.target <= 1:
            raise InputError(f"--target must be above 0 and at most 1, as in 0.995; not {self.target:g}")

    def cell(self, n: int, full: int) -> tuple[int, str]:
        """Return dims and precision of the shortlist of `n` documents of a model of `full` dims, which may be fewer."""
        if self.shortlist == AUTO:
            return full, "binary" if n > self.exact_up_to else "float32"
        dim, precision = self._parts()
        return min(dim, full), precision

    def is_inverted(self, n: int, precision: str) -> bool:
        """Whether so many documents are searched by an inverted file, which holds no floating-point numbers."""
        return n > self.exact_up_to and precision in ("int8", "int4", "binary")

    def _parts(self) -> tuple[int, str]:
        dim, _, precision = self.shortlist.partition(":")
        if not dim.isdigit() or int(dim) < 1 or precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise InputError(f"--shortlist {self.shortlist!r}: give auto or DIMS:PRECISION, as in 48:int8, of {known}")
        return int(dim), precision


def study_fusion(model: str | Path) -> Fusion | None:
    """Return the fusion of a run's model at its full size in float32; None where no study tells of it.

    Args:
        model: RUNS/NAME/models/VARIANT; anything else is no model of a run.
    """
    folder = Path(model).expanduser()
    told = folder.parent.parent / "evaluation" / f"{folder.name}.json"
    if folder.parent.name != "models" or not told.is_file():
        return None
    try:
        fusions = json.loads(told.read_text(encoding="utf-8"))["fusions"]
        sizes = {int(cell.split()[0]): cell for cell in fusions if cell.split()[1:] == ["float32"]}
        return Fusion.from_dict(fusions[sizes[max(sizes)]]) if sizes else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{told} cannot be read ({error}); run nestling run again, or give --bm25-weight"
        raise unread(told, error, what) from None


def study_queries(model: str | Path) -> list[str] | None:
    """Return the distinct queries of the dev side of a run's model; None where no study tells of them."""
    folder = Path(model).expanduser()
    dev = folder.parent.parent / "split" / "dev.parquet"
    if folder.parent.name != "models" or not dev.is_file():
        return None
    import polars as pl

    try:
        return pl.read_parquet(dev, columns=["query"])["query"].unique(maintain_order=True).to_list()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise unread(dev, error, f"{dev} cannot be read ({error}); make it again with nestling run") from None


def fusion_for(model: str, asked: str | None) -> Fusion | None:
    """Return how BM25 is added: by a weight that is given, by the study of a model that is named, or of `model`.

    Raises:
        InputError: `asked` is neither a weight nor a model that a study measured.
    """
    if asked is None:
        return study_fusion(model)
    try:
        weight = float(asked)
    except ValueError:
        found = study_fusion(asked)
        if found is None:
            raise InputError(
                f"--bm25-weight {asked!r}: give a number, as in 0.1, or a run's model whose weight to take, as in "
                "runs/NAME/models/VARIANT"
            ) from None
        return found
    return Fusion(weight)
