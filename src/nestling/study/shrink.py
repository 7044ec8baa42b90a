"""Shrink a model: a grid of cells measured on dev, the smallest that keeps enough, its figures on test, its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from nestling import atomic
from nestling.config.experiment import EvaluationSettings
from nestling.errors import InputError
from nestling.evaluation.benchmark import Benchmark
from nestling.evaluation.cell_search import Fitted
from nestling.evaluation.cells import Cell
from nestling.evaluation.recommend import MANY, cell_of, kept_by, smallest
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split
from nestling.judgments.threshold import settle_threshold
from nestling.models.encoder import SHRUNK
from nestling.models.exported_encoder import CODEC
from nestling.models.load import ModelSource, find_model, load_model, save_model
from nestling.progress import Observer
from nestling.study.evaluate import grid_encoder

MEASURE = "recall@10"
GRID: dict[str, Any] = {
    "precisions": ("float32", "float16", "int8", "int4", "binary"),
    "rotations": ("none", "trained"),
    "oversampling": (2, 4, 8),
    "fusion": False,
}
"""The measure of `shrink` by default."""


@dataclass(frozen=True)
class Choice:
    """A cell that keeps enough, and its rows of `recommend.KEPT` on dev, where it was chosen, and on test."""

    cell: Cell
    dev: dict[str, Any]
    test: dict[str, Any]


@dataclass(frozen=True)
class Shrunk:
    """The outcome of `shrink` for a model of size `full`: its cells on dev, as `recommend.KEPT`, and the choice.

    That is the smallest cell that keeps enough by itself, and the one of fewest bytes in memory whose shortlist is
    rescored, if it has fewer.
    """

    full: int
    measure: str
    keep: float
    strict: bool
    kept: pl.DataFrame
    alone: Choice | None
    rescored: Choice | None
    out: Path | None


def shrink(
    model: str,
    data: Split | Path | str,
    *,
    keep: float = 0.98,
    strict: bool | None = None,
    measure: str = MEASURE,
    settings: EvaluationSettings | None = None,
    threshold: float | None = None,
    prompts: Mapping[str, str] | None = None,
    rescoring: bool = False,
    fuse: bool = False,
    out: Path | None = None,
    cache: Path | None = None,
    observer: Observer | None = None,
) -> Shrunk:
    """Find the smallest embeddings that keep a share of a model's full quality, and write a model that gives them.

    Every cell of the grid is measured on dev, where the choice is made; the chosen ones are measured on test.

    Args:
        keep: share of the full float32 embedding's `measure` to keep, above 0 to 1.
        strict: the lower end of the share's interval of 95 % on dev must reach `keep`, not the share itself; by
            default where the grid has more than `recommend.MANY` cells, of which some keep enough by luck.
        settings: the grid; by default all precisions, with and without rotation and rescoring, at the model's own
            size, its half, quarter and eighth.
        threshold: a document is relevant above it; 2.5 on a scale of 1 to 3 by default.
        rescoring: write the cell that needs rescoring, where it is smaller.
        fuse: add stemmed BM25, at a weight that is chosen for each cell on dev.
        out: a folder to write; it must not exist.
    """
    if not 0 < keep <= 1:
        raise InputError(f"keep must be above 0 and at most 1, as in 0.98; not {keep:g}")
    if out is not None and out.exists():
        raise InputError(f"{out} exists; give another folder with --out, or remove it first")
    observer = observer or Observer()
    settings = (settings or EvaluationSettings(**GRID)).model_copy(update={"measures": (measure,)})
    if isinstance(data, Path | str):
        data = read_split(Path(data))
    threshold = settle_threshold(data.test, threshold)
    source = find_model(model, prompts=prompts)
    dev = Benchmark.of(data, settings, threshold, side="dev")
    test = Benchmark.of(data, settings, threshold, observer=observer)
    try:
        observer.stage(f"encode {model}")
        embed, cells, _ = grid_encoder(model, source, test, settings, cache=cache, observer=observer)
        strict = len(cells) > MANY if strict is None else strict
        fitted = dev.fitted(embed, cells)
        fusions = dev.fusions(embed, cells, fitted) if fuse else None

        def kept_on(side: Benchmark, cells: Sequence[Cell]) -> pl.DataFrame:
            return kept_by(side.measure(side.vectors(embed), cells, fitted, fusions).per_query, measure)

        observer.stage(f"measure {len(cells)} cells on dev")
        kept = kept_on(dev, cells)
        alone = smallest(kept, keep, strict=strict)
        rescored = smallest(kept, keep, strict=strict, rescored=True)
        if rescored is not None and (not rescored.oversampling or (alone and rescored.bytes >= alone.bytes)):
            rescored = None
        observer.stage("measure the choice on test")
        chosen = list(dict.fromkeys([cells[0], *(cell for cell in (alone, rescored) if cell)]))
        kept_on_test = kept_on(test, chosen)
    finally:
        observer.done()
    on_dev, on_test = ({cell_of(row): row for row in table.iter_rows(named=True)} for table in (kept, kept_on_test))
    choices = {cell: Choice(cell, on_dev[cell], on_test[cell]) for cell in chosen}
    written = rescored if rescoring and rescored else alone
    if out is not None:
        if written is None:
            raise InputError(
                f"no cell of the grid keeps {keep:.1%} of {measure}{' at its lower end' if strict else ''}; lower "
                f"--keep, or add sizes to the grid{', or give --no-strict' if strict else ''}"
            )
        about: dict[str, Any] = {"model": model, **asdict(written), "bytes": written.bytes, "measure": measure}
        about |= {"with_bm25": fuse, "asked_to_keep": keep}
        for side, row in (("dev", choices[written].dev), ("test", choices[written].test)):
            about[side] = {name: row[name] for name in ("value", "kept", "kept_low", "kept_high")}
        write_shrunk(source, written, fitted, out, about={**about, "data": data.train.fingerprint})
    return Shrunk(
        full=cells[0].dim,
        measure=measure,
        keep=keep,
        strict=strict,
        kept=kept,
        alone=choices[alone] if alone else None,
        rescored=choices[rescored] if rescored else None,
        out=out,
    )


def write_shrunk(source: ModelSource, cell: Cell, fitted: Fitted, out: Path, *, about: dict[str, Any]) -> None:
    """Write a model that gives the embeddings of a cell, with its codec beside it.

    Without rescoring a linear layer rotates and cuts the embedding, so that plain sentence-transformers gives
    `cell.dim` dims. With rescoring the model is only rotated, as the full embedding is needed too; the shortlist is
    searched in its first `cell.dim` dims.
    """
    import numpy as np

    from nestling.retrieval.rotation import add_rotation, append_linear

    model = load_model(source)
    with model.truncate_embeddings(None):
        full = int(model.get_embedding_dimension() or 0)
    model.truncate_dim = None
    if cell.rotation != "none":
        add_rotation(model, fitted.rotation(cell.rotation))
    if cell.dim < full and not cell.oversampling:
        append_linear(model, np.eye(full, cell.dim, dtype=np.float32))
    with atomic.new_folder(out) as temporary:
        save_model(model, temporary)
        fitted.codec(cell).save(temporary / CODEC)
        atomic.write_json(temporary / SHRUNK, about)
