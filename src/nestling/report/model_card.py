"""The model card: README.md of a trained model, with what the study measured of it, as hubs of models read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml
from markupsafe import Markup
from pydantic import ValidationError

from nestling import atomic
from nestling.config.experiment import Experiment
from nestling.config.names import DEFAULT_MODEL, PRETRAINED
from nestling.config.recipes import RECIPES
from nestling.config.run_folder import RunFolder
from nestling.config.training import STEPS, TrainingSettings, setting_names, value_of
from nestling.errors import InputError
from nestling.evaluation.grid import sizes_of
from nestling.evaluation.significance import compare_all, holm
from nestling.models.hub import BUNDLED_NAMES
from nestling.models.load import needs_newest
from nestling.report.changes import Change, changes_of, outcome_of, sentence
from nestling.report.charts import short_source
from nestling.report.contents import summary
from nestling.report.data_tables import split_table
from nestling.report.format import bounds, label, p_value, points, size
from nestling.report.page_data import PageData
from nestling.report.render.markdown import render, single_line
from nestling.report.table import Cell, Table, row
from nestling.report.tables import by_dim

CARD = "README.md"
UNLISTED = frozenset({"preset", "checkpoint_seconds", "report_to"})
"""Settings that change nothing about the weights."""
LICENSES = {
    f"sentence-transformers/{DEFAULT_MODEL}": "apache-2.0",
    "sentence-transformers/all-mpnet-base-v2": "apache-2.0",
}
"""Of base models whose own card need not be at hand."""
OUTCOMES = {
    "gain": "better than its base",
    "loss": "WORSE than its base",
    "mixed": "better than its base in one measure and WORSE in another",
    "open": "not shown to differ from its base, since no difference is significant",
}

_SNIPPET = re.compile(r'^(model = SentenceTransformer\()"[^"\n]*"', re.MULTILINE)
Changes = dict[tuple[str, int], Change]
"""By measure, and dims of the variant."""


def write_cards(folder: RunFolder, data: PageData) -> list[Path]:
    """Write `README.md` into the model folder of each trained variant that is there; return the paths."""
    paths = []
    for variant in data.trained:
        model = folder.model(variant)
        if model.is_dir() and variant in data.study["training"]:
            atomic.write_text(model / CARD, model_card(data, variant, newest=needs_newest(model)))
            paths.append(model / CARD)
    return paths


def addressed(card: str, repo_id: str) -> str:
    """Return a card whose usage snippet loads the model from a hub; one without that snippet stays as it is."""
    return _SNIPPET.sub(lambda match: f'{match[1]}"{repo_id}"', card)


def model_card(data: PageData, variant: str, *, newest: bool = False) -> str:
    """Return the card of a trained variant: YAML front matter and Markdown, texts escaped for either.

    Figures are of test. Differences are tested anew at each size: a paired randomisation test, p corrected by Holm over
    the sizes (`significance.compare_all`). The p of the opening is the one of the study's report.

    Args:
        newest: sentence-transformers before 6 cannot load the model (`models.needs_newest`).

    Raises:
        InputError: an earlier version wrote the run's settings.
    """
    if variant not in data.trained or variant not in data.study["training"]:
        raise ValueError(f"{variant!r} was not trained in this run")
    chosen = next(each for each in data.variants if each["name"] == variant)
    base, settings, recipe = base_of(chosen["base"]), _settings(data, variant), chosen["recipe"]
    nested, dims = chosen["matryoshka"], data.dims[variant]
    training = data.study["training"][variant]
    source = single_line(short_source(data.study["data"]["source"]))
    measures = data.study["experiment"]["evaluation"]["measures"]
    rows = by_dim(data.results).filter(pl.col("variant") == variant, pl.col("measure").is_in(measures))
    figures = [each for measure in measures for each in rows.filter(measure=measure).sort("dim").reverse().to_dicts()]
    untrained = (one["name"] for one in data.variants if (one["recipe"], one["base"]) == (PRETRAINED, chosen["base"]))
    before = next(untrained, None)
    rivals = {name: changes_over(data, variant, name) for name in (before, data.lexical) if name}
    changes = []
    if before:
        series = data.at_full_size((before, variant), data.measures)
        studied = {one.measure: one for one in changes_of(data.comparisons, series, before, variant, data.measures)}
        changes = [studied.get(measure, rivals[before][measure, dims[0]]) for measure in data.measures]
    tags = ["sentence-transformers", "feature-extraction", "sentence-similarity", "nestling", single_line(recipe)]
    tags += ["matryoshka"] if nested is not None else []
    return render(
        "card.md",
        **summary(data),
        head=_front_matter(base, tags, source, figures, single_line(f"{data.name} {variant}")),
        variant=variant,
        regression=data.regressions.get(variant),
        dims=dims,
        base=base,
        source=source,
        outcome=OUTCOMES[outcome_of(changes)] if before else None,
        changes=sentence(changes),
        newest=newest,
        prefixes=nested is not None or settings.rotate is not None,
        results=results_table(data, figures, rivals),
        split=split_table(data.study["split"]),
        recipe=recipe,
        recipe_summary=RECIPES[recipe].summary,
        nested_dims=nested and sizes_of(dims[0], nested["dims"] or data.study["experiment"]["evaluation"]["dims"]),
        training=training,
        memory=size(training["peak_memory"]),
        changed_settings=_settings_table(settings),
        settings=settings,
        lexical=data.lexical,
    )


def _settings(data: PageData, variant: str) -> TrainingSettings:
    try:
        experiment = Experiment.model_validate(data.study["experiment"])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        advice = "so an earlier one wrote it; run nestling run again"
        raise InputError(f"the run's setting {where} does not fit this version, {advice}") from None
    return experiment.training_of(next(each for each in experiment.variants if each.name == variant))


def _front_matter(base: Base, tags: list[str], source: str, figures: list[dict[str, Any]], name: str) -> Markup:
    from huggingface_hub import EvalResult, ModelCardData

    head = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=base.hub_id,
        tags=tags,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="information-retrieval",
                task_name="Information Retrieval",
                dataset_type="unknown",
                dataset_name=source,
                dataset_split="test",
                metric_type=each["measure"],
                metric_name=f"{label(each['measure'])} ({each['dim']} dims)",
                metric_value=round(each["value"], 4),
            )
            for each in figures
        ],
        **base.license,
    )
    return Markup(head.to_yaml())


def changes_over(data: PageData, variant: str, name: str) -> Changes:
    """Return the variant's changes over another at each size, p corrected over the sizes."""
    measures, theirs, full = data.study["experiment"]["evaluation"]["measures"], data.dims[name], data.dims[variant][0]
    # Each at its own full size first; what has no sizes, as BM25, stands against every size.
    sizes = {dim: theirs[0] if dim == full or theirs == [0] else dim for dim in data.dims[variant]}
    sizes = {dim: other for dim, other in sizes.items() if other in theirs}
    a, b = (
        np.concatenate([data.values(who, dim, measures) for dim in dims])
        for who, dims in ((name, sizes.values()), (variant, sizes))
    )
    cells = [(measure, dim) for dim in sizes for measure in measures]
    # In one call, since all share the draws; each measure is a question of its own.
    compared = compare_all({name: a, variant: b}, measures=list(map(str, cells)), reference=name)
    p = np.apply_along_axis(holm, 0, compared["p"].to_numpy().reshape(len(sizes), len(measures))).ravel()
    ends = zip(a.mean(axis=1), b.mean(axis=1), compared["low"], compared["high"], p, strict=True)
    return {cell: Change(cell[0], *map(float, figures)) for cell, figures in zip(cells, ends, strict=True)}


def results_table(data: PageData, figures: list[dict[str, Any]], rivals: Mapping[str, Changes]) -> Table:
    """Return the model's figures by size, beside its base and BM25, with intervals and p."""
    columns = ["dims", "this model"]
    for name in rivals:
        columns += [name, "difference", "p"]
    groups: dict[str, list[list[Cell]]] = {}
    for each in figures:
        cells = row(f"{each['dim']:,}", Cell(f"{each['value']:.4f}", bounds(each["low"], each["high"])))
        for changes in rivals.values():
            if change := changes.get((each["measure"], each["dim"])):
                cells += row(
                    f"{change.base:.4f}",
                    Cell(points(change.value - change.base), f"{points(change.low)} to {points(change.high)}"),
                    Cell(p_value(change.p), "not significant" if change.outcome == "open" else ""),
                )
            else:
                cells += row("–", "–", "–")
        groups.setdefault(label(each["measure"]), []).append(cells)
    test = data.study["test"]
    caption = (
        f"On test: {test['queries']:,} queries, {test['documents']:,} documents, {test['protocol']}. Below each value "
        "its interval of 95 % over queries; differences in points of 100; p of a paired randomisation test, corrected "
        "for the number of sizes (Holm); the p further up is that of the study's report, corrected for its variants."
    )
    return Table(caption, columns, list(groups.items()), words=())


def _settings_table(settings: TrainingSettings) -> Table | None:
    body = []
    for name in setting_names():
        own, default = (value_of(each, name) for each in (settings, TrainingSettings()))
        if name in STEPS:
            own, default = ("left out" if step is None else "made" for step in (own, default))
        if name not in UNLISTED and own != default and own is not None:
            body.append(row(name, str(own), str(default)))
    columns = ["setting", "value", "default"]
    return Table("Settings that differ from the defaults.", columns, [("", body)], words=(0, 1, 2)) if body else None


class Base(NamedTuple):
    """The model that training began with: its name without folders, its hub id if it has one, and its license."""

    name: str
    hub_id: str | None
    license: dict[str, Any]


def base_of(name: str) -> Base:
    """Return what is known of a base model; the license is looked up in its card where that is at hand."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(name).expanduser()
    if name not in BUNDLED_NAMES and (folder.is_dir() or name.startswith((".", "/", "~"))):
        return Base(folder.name, None, _license(folder / CARD))
    hub_id, _, revision = (DEFAULT_MODEL if name in BUNDLED_NAMES else name).partition("@")
    hub_id = hub_id if "/" in hub_id else f"sentence-transformers/{hub_id}"
    if hub_id in LICENSES:
        return Base(hub_id, hub_id, {"license": LICENSES[hub_id]})
    try:
        cached = try_to_load_from_cache(hub_id, CARD, revision=revision or None)
    except HFValidationError:
        return Base(Path(name).name, None, {})
    return Base(hub_id, hub_id, _license(Path(cached)) if isinstance(cached, str) else {})


def _license(card: Path) -> dict[str, str]:
    """Return the license fields of a card's front matter."""
    from huggingface_hub import ModelCard

    try:
        head = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return {}
    fields = {key: head[key] for key in ("license", "license_name", "license_link") if isinstance(head.get(key), str)}
    if not re.fullmatch(r"[\w.+-]{1,60}", fields.get("license", "")):
        return {}
    return {key: single_line(value) for key, value in fields.items()}
