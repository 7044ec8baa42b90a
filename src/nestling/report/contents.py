"""What the page and report.md both tell of a study: facts, tables, and what it takes to make it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from nestling.report import tables
from nestling.report.charts import short_source
from nestling.report.data_tables import lengths_table, split_table
from nestling.report.page_data import PageData
from nestling.report.table import Table

SLICED_VARIANTS = 6
"""Columns of the table of slices at most."""


def facts_of(data: PageData) -> dict[str, str]:
    """Return the study in a few words: data, sizes, and when it was finished."""
    study = data.study
    return {
        "data": short_source(study["data"]["source"]),
        "records": f"{study['inspection']['records']:,}",
        "test queries": f"{study['test']['queries']:,}, {study['test']['protocol']}",
        "test documents": f"{study['test']['documents']:,}",
        "finished": str(study.get("finished", ""))[:10],
    }


def cleaning_of(data: PageData) -> list[str]:
    """Return what cleaning met, with its count."""
    counts = data.study["inspection"]["cleaning"]
    return [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if name != "read" and count]


def tables_of(data: PageData) -> dict[str, list[Table]]:
    """Return the tables by the part that they belong to; a part that has none is empty."""
    study, sized = data.study, any(dims[0] for dims in data.dims.values())
    by_dim = tables.by_dim(data.results)
    return {
        "split": [split_table(study["split"])],
        "lengths": [lengths_table(study["inspection"])],
        "full": [_full_size(data)],
        "by_dim": [tables.by_dim_table(by_dim, measure) for measure in data.measures] if sized else [],
        "training": [tables.training_table(study["training"], data.regressions)] if study["training"] else [],
        "slices": _slices(data),
        "significance": [tables.comparison_table(data.comparisons)] if not data.comparisons.is_empty() else [],
    }


def _full_size(data: PageData) -> Table:
    return tables.full_size_table(
        tables.full_size(data.results, reference=data.reference),
        caption="Models at full size, on test. Below each value its interval of 95 % over queries."
        + (f" Gains are over {data.reference}." if data.reference else ""),
        gains=data.measures if data.reference is not None else (),
        notes={name: f"on dev below {worse}" for name, worse in data.regressions.items()},
    )


def _slices(data: PageData) -> list[Table]:
    """Return the first measure by group of queries, a column a variant."""
    if data.slices is None or data.slices.is_empty():
        return []
    found = data.slices.filter(pl.col("measure") == data.measures[0])
    shown = _shown(tables.unfused_first(found["variant"].unique(maintain_order=True).to_list()), data)
    first = data.reference if data.reference in shown else None
    return [tables.slices_table(found, shown=shown, first=first, rest="in slices.parquet")]


def _shown(every: Sequence[str], data: PageData) -> list[str]:
    """Return the variants that matter most, in their order: models, the stronger BM25, the pick's fusion."""
    models = [name for name in every if not tables.is_fused(name, every) and data.dims.get(name, [0])[0]]
    extra = [name for name in (data.lexical, data.fused(data.pick)) if name in every]
    first = [name for name in (data.reference, data.pick) if name in models]
    chosen = list(dict.fromkeys([*first, *extra, *models]))[:SLICED_VARIANTS]
    return [name for name in every if name in chosen]


def without_folders(model: str | None) -> str | None:
    """Return a model's name without the folders that it lies in."""
    # A hub id has a slash too, but begins with no root and no dot.
    return Path(model).name if model and (Path(model).is_absolute() or model.startswith(".")) else model


def reproduction_of(data: PageData) -> dict[str, Any]:
    """Return what another machine needs for the same study: the experiment, fingerprints, versions, seeds."""
    study = data.study
    experiment = {**study["experiment"], "data": dict(study["experiment"]["data"])}
    # Pages are passed around, and folders tell of a machine.
    experiment["data"]["source"] = short_source(experiment["data"]["source"])
    experiment["model"] = without_folders(experiment["model"])
    experiment["variants"] = [
        {**variant, "base": without_folders(variant["base"])} for variant in experiment["variants"]
    ]
    machine = study["hardware"]
    memory = f", {machine['memory'] / 1e9:.0f} GB of memory" if machine.get("memory") else ""
    gpus = f", {', '.join(machine['gpus'])}" if machine.get("gpus") else ", no GPU"
    return {
        "yaml": yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True),
        "fingerprints": {"data": study["data"]["fingerprint"]}
        | {name: side["fingerprint"] for name, side in study["split"]["sides"].items()},
        "versions": study["versions"],
        "machine": f"{machine['processor']}, {machine['cores']} cores{memory}{gpus}; {machine['system']}",
        "seconds": {name: f"{seconds:,.1f} s" for name, seconds in study["seconds"].items()},
        "seeds": {"split": study["experiment"]["split"]["seed"], "training": study["experiment"]["training"]["seed"]},
    }
