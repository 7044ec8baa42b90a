"""The verdict: one answer a question, in words that follow from the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nestling.errors import InputError
from nestling.evaluation.recommend import MANY, kept_by, smallest
from nestling.evaluation.significance import compare_all
from nestling.evaluation.slices import SEEN
from nestling.report.changes import ALPHA, Change, Outcome, at_full_size, changes_of, outcome_of
from nestling.report.format import label, share, stored_as
from nestling.report.page_data import PageData

Tone = Literal["good", "bad", "open"]
PICKED = "picked on test, so what it keeps is optimistic: confirm it with nestling shrink, which picks on dev"
TONES: dict[Outcome, Tone] = {"gain": "good", "loss": "bad", "mixed": "open", "open": "open"}
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


def how_small(data: PageData, variant: str) -> Small:
    """Find the smallest cell of a variant that keeps `KEEP` of its full quality in the first measure, on test.

    Of many cells it is one whose interval's lower end keeps as much, since the smallest is likely the luckiest, too.
    """
    measure = data.measures[0]
    try:
        kept = kept_by(data.cells(variant), measure)
    except InputError as error:
        return Small(None, f"{_capital(str(error))}.")
    full = kept.filter(precision="float32", rotation="none", oversampling=0)
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
    rows = smaller.filter(dim=cell.dim, precision=cell.precision, rotation=cell.rotation)
    found = rows.row(0, named=True)
    safe = "" if found["kept_low"] >= KEEP else f", and the interval reaches below {KEEP:.0%}"
    times = whole["bytes"] / found["bytes"]
    text = (
        f"{variant} at {_cell(found)}, {times:.3g} times smaller than {whole['bytes']:,}, keeps {_kept(found)} of "
        f"{label(measure)}: {found['value']:.4f} against {whole['value']:.4f} at full size{safe}."
    )
    return Small(found, text)


def _cell(row: dict[str, Any]) -> str:
    stored = stored_as(row["precision"], row["rotation"], row["oversampling"])
    return f"{row['dim']:,} dims in {stored} ({row['bytes']:,} bytes a vector)"


def _kept(row: dict[str, Any]) -> str:
    return f"{share(row['kept'])} (interval {share(row['kept_low'])} to {share(row['kept_high'])})"


@dataclass(frozen=True)
class Answer:
    """A question, the answer in a word or two, the sentence with its figures, and whether that is good news."""

    question: str
    word: str
    text: str
    tone: Tone


def verdict(data: PageData) -> list[Answer]:
    """Return the answers in the order of the page: fine-tuning, Matryoshka, BM25, size, what to ship, and a caveat.

    Variants are chosen by their figures on dev; every figure is of test. The size alone is picked on test, and wherever
    it stands that is said. Fine-tuning's p are those of the run's comparisons, corrected for their number by Holm; the
    others are corrected within their own question.
    """
    changes = _tuning_changes(data)
    outcome = outcome_of(changes)
    chosen = data.pick if outcome == "gain" or data.reference is None else data.reference
    lexical = _lexical_changes(data, chosen)
    small = how_small(data, chosen)
    caveat = new_documents(data, chosen)
    return [
        fine_tuning(data, changes),
        matryoshka(data),
        bm25(data, chosen, lexical),
        _size_answer(data, chosen, small),
        ship(data, chosen, outcome if changes else None, lexical, small),
        *([caveat] if caveat else []),
    ]


def new_documents(data: PageData, chosen: str) -> Answer | None:
    """Answer whether the figures hold for documents that training did not know; None where sides share none."""
    warning = data.study["split"].get("warning")
    if not warning:
        return None
    figures = []
    if data.slices is not None:
        rows = data.slices.filter(slice=SEEN, variant=chosen, measure=data.measures[0])
        figures = [
            f"{label(data.measures[0])} {value:.4f} on {queries:,} queries ({name})"
            for name, queries, value in rows.select("label", "queries", "value").iter_rows()
        ]
    told = (
        f" By how many of their relevant documents training knew, {chosen} has {'; '.join(figures)}." if figures else ""
    )
    return Answer("Does it hold for new documents?", "Not shown", f"{warning}.{told}", "bad")


def fine_tuning(data: PageData, changes: Sequence[Change]) -> Answer:
    """Answer whether fine-tuning helps: `changes` of the best trained variant on dev over the pretrained one."""
    question = "Does fine-tuning help?"
    if not data.trained:
        return Answer(question, "Not tried", "No variant of this run was trained.", "open")
    if data.reference is None:
        return Answer(question, "Cannot be said", "The run has no pretrained variant to compare with.", "open")
    outcome, pick, reference = outcome_of(changes), data.pick, data.reference
    gains, losses = (
        " and ".join(label(change.measure) for change in changes if change.outcome == way) for way in ("gain", "loss")
    )
    everywhere = all(change.outcome == "gain" for change in changes)
    word, claim = {
        "gain": ("Yes" if everywhere else f"Yes, in {gains}", f"{pick} is better than {reference}"),
        "loss": ("No, it is a regression", f"{pick} is worse than {reference} in {losses}"),
        "mixed": ("Mixed", f"{pick} gains {gains} on {reference} but loses {losses}"),
        "open": ("Not shown", f"The difference between {pick} and {reference} may be chance"),
    }[outcome]
    if all(abs(change.value - change.base) < ALPHA for change in changes):
        word, claim = "No gain", f"{pick} and {reference} have the same figures"
    best = " It was chosen among the trained ones on dev." if len(data.trained) > 1 else ""
    fell = [f"{name} ended below {where}" for name, where in data.regressions.items()]
    warned = f" On dev {'; '.join(fell)}." if fell else ""
    return Answer(question, word, f"{claim}: {_listed(changes)}.{best}{warned}", TONES[outcome])


def matryoshka(data: PageData) -> Answer:
    """Answer what Matryoshka costs at full size and wins at the smallest, against its twin without."""
    question = "What does Matryoshka cost and win?"
    nested = [variant for variant in data.variants if variant["matryoshka"] is not None]
    if not nested:
        return Answer(question, "Not tried", "No variant was trained with the Matryoshka loss.", "open")
    pairs = [(variant, _twin(data, variant)) for variant in nested]
    variant, twin = next((pair for pair in pairs if pair[1] is not None), pairs[0])
    name, against = variant["name"], twin or data.reference
    measure = data.measures[0]
    shared = sorted(set(data.dims[name]) & set(data.dims.get(against or "", [])), reverse=True)
    if against is None or len(shared) < 2:
        kept = _kept_at(data, name, data.dims[name][-1], measure)
        return Answer(question, "Cannot be said", f"Nothing with the same sizes was trained without it. {kept}", "open")
    full, small = shared[0], shared[-1]
    series = {who: [data.values(who, dim, (measure,))[0] for dim in (full, small)] for who in (against, name)}
    compared = compare_all(series, measures=("full", "small"), reference=against)
    changes = changes_of(compared, series, against, name, ("full", "small"))
    at_full, at_small = (replace(change, measure=measure) for change in changes)
    word = {
        ("gain", "loss"): "A trade",
        ("gain", "open"): f"Pays at {small} dims",
        ("gain", "gain"): "Pays at both ends",
        ("open", "open"): "Makes no clear difference",
    }.get(
        (at_small.outcome, at_full.outcome),
        f"Pays at {full} dims only" if at_full.outcome == "gain" else "Does not pay",
    )
    apart = "" if twin else " The other was not trained, so this is the effect of training and Matryoshka together."
    tone = "open" if word == "A trade" else TONES[at_small.outcome]
    told = f"{name} against {against}, at {full} dims: {at_full}; at {small} dims: {at_small}."
    return Answer(question, word if twin else "Not tried apart", told + apart, tone if twin else "open")


def bm25(data: PageData, chosen: str, changes: dict[str, list[Change]]) -> Answer:
    """Answer whether the model beats BM25 alone, and what their fusion gives.

    Args:
        chosen: the model.
        changes: `model` over BM25, `fusion` over the model and `both` over BM25, as far as they were measured; a
            change for each measure.
    """
    question = "Is it better than BM25?"
    if "model" not in changes:
        return Answer(question, "Not measured", "BM25 was not measured in this run.", "open")
    name = "stemmed BM25" if data.lexical == "bm25-stemmed" else "unstemmed BM25"
    outcome = outcome_of(changes["model"])
    proven = [label(change.measure) for change in changes["model"] if change.outcome == outcome]
    where = "" if len(proven) in (0, len(changes["model"])) else f" in {' and '.join(proven)}"
    word, claim = {
        "gain": (f"Yes{where}", f"{chosen} is better than {name}{where}"),
        "loss": (
            f"No, BM25 alone is better{where}",
            f"{_capital(name)} without any model is better than {chosen}{where}",
        ),
        "mixed": ("Mixed", f"Between {name} and {chosen} one measure rises and the other falls"),
        "open": ("Not shown", f"Between {name} and {chosen} there is no significant difference"),
    }[outcome]
    text = f"{claim}: {_listed(changes['model'])}."
    if "fusion" not in changes:
        return Answer(question, word, f"{text} Their fusion was not measured.", TONES[outcome])
    does = {
        "gain": "is better than the model alone",
        "loss": "is worse than the model alone",
        "mixed": "gains one measure on the model alone and loses another",
        "open": "shows no significant difference from the model alone",
    }[outcome_of(changes["fusion"])]
    return Answer(question, word, f"{text} The fusion of both {does}: {_listed(changes['fusion'])}.", TONES[outcome])


def ship(data: PageData, chosen: str, tuned: Outcome | None, lexical: dict[str, list[Change]], small: Small) -> Answer:
    """Say what to ship: model, with or without BM25, at which size.

    Args:
        chosen: the trained model where it proved better, else the pretrained one.
        tuned: what training did; None where nothing could be compared.
        lexical: as `bm25` takes it.
        small: the smallest that keeps enough.
    """
    question = "What to ship?"
    model, fusion, both = (outcome_of(lexical[key]) if key in lexical else None for key in ("model", "fusion", "both"))
    if model not in ("gain", None) and both != "gain":
        name = "Stemmed BM25 alone" if data.lexical == "bm25-stemmed" else "BM25 alone"
        shown = (
            "is better than the model, and the fusion is not shown to be better"
            if model == "loss"
            else "needs no embeddings, and neither model nor fusion is shown to be better"
        )
        return Answer(question, name, f"It {shown}.", "bad" if model == "loss" else "open")
    fused = fusion == "gain" or (model not in ("gain", None) and fusion != "loss")
    word = f"{chosen} with BM25 added" if fused else chosen
    why = {
        "gain": "Training proved itself on queries that it never saw",
        "loss": "Training made it worse, so the pretrained model stays",
        "mixed": "Training gains one measure and loses another, so the pretrained model stays until you weigh them",
        "open": "Training is not shown to help, so the pretrained model stays",
        None: "There is nothing to compare training with",
    }[tuned]
    size, picked = "at its full size", ""
    if small.row is not None:
        alone = ", quality counted without BM25" if fused else ""
        size, picked = f"at {_cell(small.row)}{alone}", f" That size was {PICKED}."
    return Answer(question, word, f"{why}. Store it {size}.{picked}", "good" if tuned == "gain" else "open")


def _size_answer(data: PageData, chosen: str, small: Small) -> Answer:
    question = "How small can it get?"
    nested = [one["name"] for one in data.variants if one["matryoshka"] is not None and one["name"] != chosen]
    # Several may be smaller, as a run may hold several models with the Matryoshka loss.
    others = [how_small(data, name) for name in nested]
    best = min((small, *others), key=lambda one: one.row["bytes"] if one.row is not None else math.inf)
    if best.row is None:
        return Answer(question, "Not below full size", small.text, "open")
    texts = [best.text, *([small.text] if best is not small else []), f"{PICKED.capitalize()}."]
    return Answer(question, f"{best.row['bytes']:,} bytes a vector", " ".join(texts), "good")


def _tuning_changes(data: PageData) -> list[Change]:
    if data.reference is None or not data.trained:
        return []
    series = at_full_size(data, (data.reference, data.pick))
    return changes_of(data.comparisons, series, data.reference, data.pick, data.measures)


def _lexical_changes(data: PageData, chosen: str) -> dict[str, list[Change]]:
    """Return the model over BM25, the fusion over the model, and the fusion over BM25, as far as measured."""
    if data.lexical is None:
        return {}
    pairs, fusion = {"model": (data.lexical, chosen)}, data.fused(chosen)
    if fusion is not None:
        pairs |= {"fusion": (chosen, fusion), "both": (data.lexical, fusion)}
    series = at_full_size(data, dict.fromkeys(name for pair in pairs.values() for name in pair))
    compared = compare_all(series, measures=data.measures)
    return {what: changes_of(compared, series, *pair, data.measures) for what, pair in pairs.items()}


def _twin(data: PageData, variant: dict[str, Any]) -> str | None:
    """Return the variant that differs from this one in its Matryoshka loss alone."""
    same = ("recipe", "base", "training")
    for other in data.variants:
        if other["matryoshka"] is None and all(other[key] == variant[key] for key in same):
            return str(other["name"])
    return None


def _kept_at(data: PageData, name: str, dim: int, measure: str) -> str:
    full, small = (float(data.values(name, size, (measure,)).mean()) for size in (data.dims[name][0], dim))
    return f"{name} has {label(measure)} {full:.4f} at full size and {small:.4f} at {dim:,} dims."


def _listed(changes: Sequence[Change]) -> str:
    return " and ".join(map(str, changes))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
