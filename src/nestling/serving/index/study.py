"""What the study of a run's model knows: the weight of BM25 that it chose on dev, and the queries of dev."""

from __future__ import annotations

import json
from pathlib import Path

from nestling.errors import InputError, unread
from nestling.retrieval.fusion import Fusion


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
