"""Contents shared by the page, report.md and the model card: facts, tables, and the commands of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from markupsafe import Markup

from nestling.report import tables
from nestling.report.charts import measure_by_dim, short_source
from nestling.report.data_tables import lengths_table, split_table
from nestling.report.format import label
from nestling.report.page_data import PageData
from nestling.report.render.html import picture, shortened
from nestling.report.table import Table
from nestling.report.verdict import verdict

SLICED_VARIANTS = 6


def contents(data: PageData) -> dict[str, Any]:
    """Return what page and report.md show, by the names of their templates; a part without tables is empty."""
    study, by_dim = data.study, tables.by_dim(data.results)
    cleaning = study["inspection"]["cleaning"].items()
    over = f" Gains are over {data.reference}." if data.reference else ""
    return {
        **summary(data),
        "measures": data.measures,
        "facts": {
            "data": short_source(study["data"]["source"]),
            "records": f"{study['inspection']['records']:,}",
            "test queries": f"{study['test']['queries']:,}, {study['test']['protocol']}",
            "test documents": f"{study['test']['documents']:,}",
            "finished": str(study.get("finished", ""))[:10],
        },
        "answers": verdict(data),
        "cleaning": [f"{count:,} {name.replace('_', ' ')}" for name, count in cleaning if name != "read" and count],
        "notes": study["inspection"].get("notes", ()),
        "findings": data.findings,
        "split": split_table(study["split"]),
        "lengths": lengths_table(study["inspection"]),
        "full": tables.full_size_table(
            tables.full_size(data.results, reference=data.reference),
            caption=f"Models at full size, on test. Below each value its interval of 95 % over queries.{over}",
            gains=data.measures if data.reference else (),
            notes={name: f"on dev below {worse}" for name, worse in data.regressions.items()},
        ),
        "by_dim": [tables.by_dim_table(by_dim, measure) for measure in data.measures if by_dim.height],
        "training": tables.training_table(study["training"], data.regressions) if study["training"] else None,
        "slices": _slices_table(data),
        "significance": None if data.comparisons.is_empty() else tables.comparison_table(data.comparisons),
    }


def summary(data: PageData) -> dict[str, Any]:
    """Return what a model's card shows too: the data in a sentence, leaks, the ceiling of recall, reproduction."""
    study, inspection = data.study, data.study["inspection"]
    promise = study["split"].get("promise", "sides share no query and no document")
    leak_check = f"Leak check: counted in the tables, {promise}."
    if data.leaks is None:
        leak_check = "Leak check: not made, since the split is not in the run folder."
    elif data.leaks:
        leak_check = f"Leak, so the figures are too good: {'; '.join(data.leaks)}."
    return {
        "name": data.name,
        "inspection": inspection,
        "judged": (
            f"{inspection['records']:,} judged records of {inspection['queries']:,} queries and "
            f"{inspection['documents']:,} documents. A document is relevant where its score is above "
            f"{study['threshold']:g}: {inspection['kept']:,} pairs, {inspection['share']:.1%}."
        ),
        "leaks": data.leaks,
        "leak_check": leak_check,
        "warning": study["split"].get("warning"),
        "ceiling": study["test"]["ceiling@10"],
        "reproduce": _reproduction(data),
    }


def _slices_table(data: PageData) -> Table | None:
    """Return the first measure by group of queries, columns of models, the stronger BM25 and the pick's fusion."""
    if data.slices is None:
        return None
    slices = data.slices.filter(measure=data.measures[0])
    every = tables.unfused_first(slices["variant"].unique(maintain_order=True).to_list())
    models = [name for name in every if not tables.is_fused(name, every) and data.dims.get(name, [0])[0]]
    first = [name for name in (data.reference, data.pick) if name in models]
    extra = [name for name in (data.lexical, data.fused(data.pick)) if name in every]
    chosen = list(dict.fromkeys([*first, *extra, *models]))[:SLICED_VARIANTS]
    variants = [name for name in every if name in chosen]
    reference = data.reference if data.reference in variants else None
    return tables.slices_table(slices, variants=variants, reference=reference, rest="in slices.parquet")


def measure_pictures(results: pl.DataFrame, measures: Sequence[str], study: Mapping[str, Any]) -> list[Markup]:
    """Return the picture of each measure over embedding sizes; none where no model was measured."""
    if results.filter(pl.col("dim") > 0).is_empty():
        return []
    source, test = short_source(study["data"]["source"]), study["test"]
    text = f"{source}: {test['queries']:,} test queries, {test['documents']:,} documents, {test['protocol']}"
    pictures = {measure: measure_by_dim(results, measure, subtitle=shortened(text, 120)) for measure in measures}
    return [picture(chart, name=f"{label(measure)} by embedding size") for measure, chart in pictures.items()]


def without_folders(model: str | None) -> str | None:
    """Return a model's name without the folders that it lies in."""
    # A hub id has a slash too, but begins with no root and no dot.
    return Path(model).name if model and (Path(model).is_absolute() or model.startswith(".")) else model


def _reproduction(data: PageData) -> dict[str, Any]:
    """Return what another machine needs for the same study; pages are passed around, so folders are left out."""
    study, experiment = data.study, data.study["experiment"]
    published = {
        **experiment,
        "data": {**experiment["data"], "source": short_source(experiment["data"]["source"])},
        "model": without_folders(experiment["model"]),
        "variants": [{**one, "base": without_folders(one["base"])} for one in experiment["variants"]],
    }
    machine = study["hardware"]
    memory = f", {machine['memory'] / 1e9:.0f} GB of memory" if machine.get("memory") else ""
    gpus = ", ".join(machine.get("gpus") or ["no GPU"])
    return {
        "yaml": yaml.safe_dump(published, sort_keys=False, allow_unicode=True),
        "fingerprints": {
            "data": study["data"]["fingerprint"],
            **{name: side["fingerprint"] for name, side in study["split"]["sides"].items()},
        },
        "versions": study["versions"],
        "machine": f"{machine['processor']}, {machine['cores']} cores{memory}, {gpus}; {machine['system']}",
        "seconds": {name: f"{seconds:,.1f} s" for name, seconds in study["seconds"].items()},
        "seeds": {"split": experiment["split"]["seed"], "training": experiment["training"]["seed"]},
    }
