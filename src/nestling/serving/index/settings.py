"""Settings of an index, and what the study of a run's model gives for it: BM25's weight and queries to calibrate on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.config.manifests import read_json
from nestling.config.names import PRECISIONS
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError, unread
from nestling.retrieval.codec import Codec
from nestling.retrieval.fusion import Fusion

AUTO = "auto"


@dataclass(frozen=True)
class IndexSettings:
    """Settings of an index.

    Attributes:
        shortlist: `DIM:PRECISION` of the codes that find candidates. `auto` is what a shrunk model brings along, else
            whole float32 vectors up to `exact_up_to` documents and one bit a dim beyond.
        exact_up_to: with more documents than this an inverted file is built.
        target: share of the exact top 10 that a search must find, on queries made of the documents' words.
    """

    shortlist: str = AUTO
    exact_up_to: int = 50_000
    target: float = 0.995
    bm25: bool = True
    language: str = "english"

    def __post_init__(self) -> None:
        if self.shortlist != AUTO:
            self._dim_and_precision()
        if self.exact_up_to < 0:
            raise InputError(f"--exact-up-to must be 0 or more, not {self.exact_up_to}")
        if not 0 < self.target <= 1:
            raise InputError(f"--target must be above 0 and at most 1, as in 0.995; not {self.target:g}")

    def cell(self, n: int, full: int, codec: Codec | None) -> tuple[int, str]:
        """Return dims and precision of the shortlist of `n` documents of a model of `full` dims and its own codec."""
        if codec is not None:
            return codec.dim, codec.precision
        if self.shortlist == AUTO:
            return full, "binary" if n > self.exact_up_to else "float32"
        dim, precision = self._dim_and_precision()
        return min(dim, full), precision

    def _dim_and_precision(self) -> tuple[int, str]:
        dim, _, precision = self.shortlist.partition(":")
        if not dim.isdigit() or int(dim) < 1 or precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise InputError(f"--shortlist {self.shortlist!r}: give auto or DIMS:PRECISION, as in 48:int8, of {known}")
        return int(dim), precision


def study_fusion(model: str | Path) -> Fusion | None:
    """Return the fusion of RUNS/NAME/models/VARIANT at full size in float32; None where no study measured a model."""
    run = RunFolder.of_model(model)
    evaluation = run.measured(Path(model).name) if run else None
    if evaluation is None or not evaluation.is_file():
        return None
    advice = "run nestling run again, or give --bm25-weight"
    results = read_json(evaluation, dict[str, Any], advice=advice)
    try:
        cells = [(cell.split(), fusion) for cell, fusion in results["fusions"].items()]
        sizes = {int(words[0]): fusion for words, fusion in cells if words[1:] == ["float32"]}
        return Fusion.from_dict(sizes[max(sizes)]) if sizes else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{evaluation} cannot be read ({error}); {advice}") from None


def study_queries(model: str | Path) -> list[str] | None:
    """Return the distinct queries of the dev side of a run's model; None for a model of no run."""
    run = RunFolder.of_model(model)
    dev = run.split / "dev.parquet" if run else None
    if dev is None or not dev.is_file():
        return None
    import polars as pl

    try:
        return pl.read_parquet(dev, columns=["query"])["query"].unique(maintain_order=True).to_list()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise unread(dev, error, f"{dev} cannot be read ({error}); make it again with nestling run") from None


def fusion_for(model: str, weight: str | None) -> Fusion | None:
    """Return how BM25 is added to `model`: by a number, a run's model whose weight to take, or its own study."""
    if weight is None:
        return study_fusion(model)
    try:
        value = float(weight)
    except ValueError:
        if fusion := study_fusion(weight):
            return fusion
        model_form = "a run's model whose weight to take, as in runs/NAME/models/VARIANT"
        raise InputError(f"--bm25-weight {weight!r}: give a number, as in 0.1, or {model_form}") from None
    return Fusion(value)
