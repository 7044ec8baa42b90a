"""The model card: README.md of a trained model, with what the study measured of it, as hubs of models read it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from nestling import atomic
from nestling.config.experiment import Experiment
from nestling.config.names import PRETRAINED
from nestling.config.recipes import RECIPES
from nestling.config.run_folder import RunFolder
from nestling.config.training import STEPS, TrainingSettings, setting_names, value_of
from nestling.errors import InputError
from nestling.evaluation.grid import sizes_of
from nestling.evaluation.significance import compare_all, holm
from nestling.models.load import needs_newest
from nestling.report.card_base import CARD, Base, base_of
from nestling.report.changes import Change, at_full_size, changes_of, outcome_of
from nestling.report.charts import short_source
from nestling.report.contents import reproduction_of
from nestling.report.data_tables import split_table
from nestling.report.format import label, p_value, points, size
from nestling.report.page_data import PageData
from nestling.report.render.markdown import escaped, markdown, single_line
from nestling.report.study_markdown import leak_lines, reproduction
from nestling.report.table import Cell, Table, row
from nestling.report.tables import Figure, bounds, by_dim

UNLISTED = frozenset({"preset", "checkpoint_seconds", "report_to"})
"""Settings that change nothing about the weights."""
HERE = "."
"""What the usage snippet loads as long as the model is on no hub: the folder of the card."""

_SNIPPET = re.compile(r'^(model = SentenceTransformer\()"[^"\n]*"', re.MULTILINE)
_SBERT = "Reimers and Gurevych 2019, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, arXiv 1908.10084"
_INFONCE = (
    "van den Oord, Li and Vinyals 2018, Representation Learning with Contrastive Predictive Coding, arXiv 1807.03748"
)
_COSENT = (
    "Huang et al. 2024, CoSENT: Consistent Sentence Embedding via Similarity Ranking, doi 10.1109/TASLP.2024.3402087"
)
_MATRYOSHKA = "Kusupati et al. 2022, Matryoshka Representation Learning, arXiv 2205.13147"
_WISE_FT = "Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv 2109.01903"
_MODEL2VEC = (
    "Tulkens and van Dongen 2024, Model2Vec: Fast State-of-the-Art Static Embeddings, github.com/MinishLab/model2vec"
)
_DISTILLATION = (
    "Hofstätter et al. 2020, Improving efficient neural ranking models with cross-architecture knowledge distillation, "
    "arXiv 2010.02666"
)
_LOSSES = {"cosent": [_COSENT], "cosine": []}

Changes = dict[tuple[str, int], Change]
"""By measure, and dims of the variant."""


def write_cards(folder: RunFolder, data: PageData) -> list[Path]:
    """Write `README.md` into the model folder of each trained variant that is there; return the paths.

    Raises:
        InputError: an earlier version wrote the run's settings.
    """
    paths = []
    for variant in data.trained:
        model = folder.model(variant)
        if model.is_dir() and variant in data.study["training"]:
            atomic.write_text(model / CARD, model_card(data, variant, newest=needs_newest(model)))
            paths.append(model / CARD)
    return paths


def addressed(card: str, repo_id: str) -> str:
    """Return a card whose usage snippet loads the model from a hub; one without that snippet stays as it is."""
    return _SNIPPET.sub(lambda found: f'{found[1]}"{repo_id}"', card)


def model_card(data: PageData, variant: str, *, newest: bool = False) -> str:
    """Return the card of a trained variant: YAML front matter and Markdown, texts escaped for either.

    Figures are of test. Differences are tested anew at each size: a paired randomisation test, p corrected by Holm over
    the sizes (`significance.compare_all`). The p of the opening is the one of the study's report.

    Args:
        newest: sentence-transformers before 6 cannot load the model (`models.needs_newest`).

    Raises:
        InputError: an earlier version wrote the run's settings.
        ValueError: no such variant was trained.
    """
    if variant not in data.trained or variant not in data.study["training"]:
        raise ValueError(f"{variant!r} was not trained in this run")
    from huggingface_hub import EvalResult, ModelCardData

    chosen = next(each for each in data.variants if each["name"] == variant)
    base, settings = base_of(chosen["base"]), _settings(data, variant)
    nested = chosen["matryoshka"] is not None
    source = single_line(short_source(data.study["data"]["source"]))
    rows = [each for each in by_dim(data.results) if each.variant == variant]
    measures = data.study["experiment"]["evaluation"]["measures"]
    figures = {(measure, each.dim): each.figures[measure] for measure in measures for each in rows}
    head = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=base.hub_id,
        tags=[
            *("sentence-transformers", "feature-extraction", "sentence-similarity", "nestling"),
            *(single_line(chosen["recipe"]), *(["matryoshka"] if nested else [])),
        ],
        model_name=single_line(f"{data.name} {variant}"),
        eval_results=[
            EvalResult(
                task_type="information-retrieval",
                task_name="Information Retrieval",
                dataset_type="unknown",
                dataset_name=source,
                dataset_split="test",
                metric_type=measure,
                metric_name=f"{label(measure)} ({dim} dims)",
                metric_value=round(figure.value, 4),
            )
            for (measure, dim), figure in figures.items()
        ],
        **base.license,
    )
    before, lexical = _untouched(data, chosen["base"]), data.lexical
    rivals = {name: changes_over(data, variant, name) for name in (before, lexical) if name}
    parts = [
        f"# {escaped(data.name)}: {escaped(variant)}",
        *_opening(data, chosen, base, before, rivals),
        "## Usage",
        _usage(data.dims[variant], prefixes=nested or settings.rotate is not None, newest=newest),
        "## Results",
        markdown(results_table(data, figures, rivals)),
        f"Recall@10 can reach {data.study['test']['ceiling@10']:.4f} at most on these queries.",
        *_data(data, source),
        *_training(data, chosen, settings),
        *_limits(data, base, lexical is not None),
        "## How to reproduce",
        reproduction(data),
        "## Citation",
        "\n".join(f"- {escaped(one)}" for one in _citations(chosen["recipe"], nested, settings)),
    ]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _settings(data: PageData, variant: str) -> TrainingSettings:
    try:
        experiment = Experiment.model_validate(data.study["experiment"])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"the run's setting {where} does not fit this version, so an earlier one wrote it; run nestling run again"
        ) from None
    return experiment.training_of(next(each for each in experiment.variants if each.name == variant))


def _untouched(data: PageData, base: str) -> str | None:
    return next((one["name"] for one in data.variants if (one["recipe"], one["base"]) == (PRETRAINED, base)), None)


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
    found = compare_all({name: a, variant: b}, measures=[f"{measure} {dim}" for measure, dim in cells], reference=name)
    p = np.apply_along_axis(holm, 0, found["p"].to_numpy().reshape(len(sizes), len(measures))).ravel()
    return {
        (measure, dim): Change(measure, float(a[n].mean()), float(b[n].mean()), found["low"][n], found["high"][n], p[n])
        for n, (measure, dim) in enumerate(cells)
    }


def results_table(data: PageData, figures: Mapping[tuple[str, int], Figure], rivals: Mapping[str, Changes]) -> Table:
    """Return the model's figures by size, beside its base and BM25, with intervals and p."""
    columns = ["dims", "this model"]
    for name in rivals:
        columns += [name, "difference", "p"]
    groups: dict[str, list[list[Cell]]] = {}
    for (measure, dim), figure in figures.items():
        cells = row(f"{dim:,}", Cell(f"{figure.value:.4f}", bounds(figure)))
        for changes in rivals.values():
            change = changes.get((measure, dim))
            if change is None:
                cells += row("–", "–", "–")
                continue
            interval = f"{points(change.low)} to {points(change.high)}"
            cells += row(
                f"{change.base:.4f}",
                Cell(points(change.value - change.base), interval),
                Cell(p_value(change.p), "not significant" if change.outcome == "open" else ""),
            )
        groups.setdefault(label(measure), []).append(cells)
    test = data.study["test"]
    caption = (
        f"On test: {test['queries']:,} queries, {test['documents']:,} documents, {test['protocol']}. Below each value "
        "its interval of 95 % over queries; differences in points of 100; p of a paired randomisation test, corrected "
        "for the number of sizes (Holm); the p further up is that of the study's report, corrected for its variants."
    )
    return Table(caption, columns, list(groups.items()), words=())


def _opening(
    data: PageData, chosen: dict[str, Any], base: Base, before: str | None, rivals: Mapping[str, Changes]
) -> list[str]:
    variant, full = chosen["name"], data.dims[chosen["name"]][0]
    link = f"[{escaped(base.name)}](https://huggingface.co/{base.hub_id})" if base.hub_id else escaped(base.name)
    source = escaped(short_source(data.study["data"]["source"]))
    what = f"A sentence-transformers model of {full:,} dims for search, made of {link} with judgments of {source}"
    parts = []
    worse = data.regressions.get(variant)
    if worse:
        parts.append(f"**REGRESSION: on dev this model ended below {worse}. Do not use it in place of its base.**")
    parts += leak_lines(data) if data.leaks else leak_lines(data)[1:]
    if before is None:
        return [*parts, f"{what}. The run did not measure its base model, so what training did is not known."]
    # Where the study compared the two, with its interval and p, which are corrected for its variants.
    studied = changes_of(data.comparisons, at_full_size(data, (before, variant)), before, variant, data.measures)
    by_measure = {change.measure: change for change in studied}
    changes = [by_measure.get(measure, rivals[before][measure, full]) for measure in data.measures]
    outcome = {
        "gain": "better than its base",
        "loss": "WORSE than its base",
        "mixed": "better than its base in one measure and WORSE in another",
        "open": "not shown to differ from its base, since no difference is significant",
    }[outcome_of(changes)]
    figures = escaped(" and ".join(map(str, changes)))
    return [*parts, f"{what}. On the test side it is {outcome}: {figures}."]


def _usage(dims: Sequence[int], *, prefixes: bool, newest: bool) -> str:
    lines = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{HERE}")',
        'queries = model.encode_query(["waterproof wood paint"])',
        'documents = model.encode_document(["Exterior paint for wood, waterproof", "Claw hammer, steel, 450 g"])',
        "print(model.similarity(queries, documents))",
    ]
    told = "It loads the model from the folder of this card; elsewhere give that folder's path, or the model's hub id."
    if newest:
        told += " It needs sentence-transformers 6 or later: earlier ones lack a module of it."
    parts = ["```python", *lines, "```", "", told]
    if prefixes and len(dims) > 1:
        small = dims[len(dims) // 2]
        told = f"Embeddings can be cut to the sizes under Results. For {small:,} dims replace the model's line by"
        parts += ["", told, "", "```python", f'model = SentenceTransformer("{HERE}", truncate_dim={small})', "```"]
    return "\n".join(parts)


def _data(data: PageData, source: str) -> list[str]:
    found = data.study["inspection"]
    text = (
        f"{source}: {found['records']:,} judged records of {found['queries']:,} queries and {found['documents']:,} "
        f"documents. A document is relevant where its score is above {data.study['threshold']:g}: {found['kept']:,} "
        f"pairs, {found['share']:.1%}. No text of the data is in this card."
    )
    return ["## Training data", escaped(text), markdown(split_table(data.study["split"]))]


def _training(data: PageData, chosen: dict[str, Any], settings: TrainingSettings) -> list[str]:
    found, defaults = data.study["training"][chosen["name"]], TrainingSettings()
    recipe = chosen["recipe"]
    sentences = [f"Recipe {recipe}: {RECIPES[recipe].summary}."]
    if chosen["matryoshka"] is not None:
        given = chosen["matryoshka"]["dims"] or data.study["experiment"]["evaluation"]["dims"]
        asked = sizes_of(data.dims[chosen["name"]][0], given)
        sentences.append(f"Trained with the Matryoshka loss at {', '.join(map(str, asked))} dims.")
    sentences.append(
        f"{found['examples']:,} examples, {found['steps']:,} steps, {found['seconds']:,.1f} s in steps "
        f"({found['pairs_per_second']:,.0f} pairs/s), {found['precision']}, {size(found['peak_memory'])} of memory at "
        f"most, on {reproduction_of(data)['machine']}."
    )
    before, after = (found[when]["dev_recall@10"] for when in ("before", "after"))
    sentences.append(f"On dev recall@10 went from {before:.4f} to {after:.4f}.")
    sentences += [f"Left out, as dev was lower for it: {line}." for line in found.get("left_out", ())]
    values = {name: (value_of(settings, name), value_of(defaults, name)) for name in setting_names()}
    steps = {name: tuple("left out" if step is None else "made" for step in values[name]) for name in STEPS}
    differ = [
        row(name, str(own), str(default))
        for name, (own, default) in {**values, **steps}.items()
        if name not in UNLISTED and own != default and own is not None
    ]
    rows = Table(
        "Settings that differ from the defaults.", ["setting", "value", "default"], [("", differ)], words=(0, 1, 2)
    )
    listed = markdown(rows) if differ else "All settings are the defaults."
    return ["## Training", escaped(" ".join(sentences)), listed]


def _limits(data: PageData, base: Base, lexical: bool) -> list[str]:
    found = data.study["inspection"]
    lengths = [
        f"{name} of {found[key]['median']:,.4g} tokens in the median and {found[key]['longest']:,} at most"
        + (f" ({found[key]['cut']:.1%} cut at {found[key]['limit']:,})" if found[key]["cut"] else "")
        for name, key in (("queries", "query_lengths"), ("documents", "document_lengths"))
    ]
    license = (
        f"- License: {base.license['license']}, as its base has it. Whether the training data allows it is not checked."
        if base.license
        else "- License: unknown, since the base model's card was not found or names none. Find out before sharing."
    )
    return [
        "## Intended use and limits",
        "\n".join(
            [
                "- For ranking the documents of the catalogue that it was trained on, or one much like it, by queries "
                "of the same kind. Other catalogues, kinds of queries and languages were not measured.",
                f"- Measured on {' and '.join(lengths)}. Longer texts were not measured.",
                "- Intervals and p speak of other queries of the same kind, not of other training seeds or raters.",
                *([] if lexical else ["- BM25 was not measured in this run."]),
                escaped(license),
            ]
        ),
    ]


def _citations(recipe: str, nested: bool, settings: TrainingSettings) -> list[str]:
    used = [_SBERT, *_LOSSES.get(recipe, [_INFONCE])]
    used += [_MATRYOSHKA] if nested else []
    used += [_MODEL2VEC] if recipe == "static" or settings.concat_static else []
    used += [_DISTILLATION] if settings.distill else []
    return used + ([_WISE_FT] if settings.merge_base else [])
