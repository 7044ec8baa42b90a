"""The verdict: one answer a question, in words that follow from the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from nestling.errors import InputError
from nestling.evaluation.recommend import MANY, kept_by, smallest
from nestling.evaluation.significance import compare_all
from nestling.evaluation.slices import SEEN
from nestling.report.changes import Change, Outcome, changes_of, outcome_of, sentence, unchanged
from nestling.report.format import label, stored_as
from nestling.report.page_data import PageData

Tone = Literal["good", "bad", "open"]
TONES: dict[Outcome, Tone] = {"gain": "good", "loss": "bad", "mixed": "open", "open": "open"}
PICKED = "picked on test, so what it keeps is optimistic: confirm it with nestling shrink, which picks on dev"
KEEP = 0.98
"""Share of the full embedding's quality that a smaller one has to keep to be recommended."""
LEXICAL = {"bm25-stemmed": "stemmed BM25", "bm25": "unstemmed BM25"}

OverLexical = Mapping[str, Sequence[Change]]
"""`model` over BM25, `fusion` over the model and `both` over BM25, as far as measured; a change for each measure."""


@dataclass(frozen=True)
class Answer:
    """A question, the answer in a word or two, the sentence with its figures, and whether that is good news."""

    question: str
    word: str
    text: str
    tone: Tone


@dataclass(frozen=True)
class Small:
    """The smallest cell that keeps `KEEP` of a variant's quality: its row of `recommend.KEPT`, and a sentence.

    The row is None where no cell below the full one keeps enough.
    """

    row: dict[str, Any] | None
    text: str


def verdict(data: PageData) -> list[Answer]:
    """Return the answers in the order of the page: fine-tuning, Matryoshka, BM25, size, what to ship, and a caveat.

    Variants are chosen by their figures on dev; every figure is of test. The size alone is picked on test, and wherever
    it stands that is said. Fine-tuning's p are those of the run's comparisons, corrected for their number by Holm; the
    others are corrected within their own question.
    """
    changes: list[Change] = []
    if data.reference is not None and data.trained:
        series = data.at_full_size((data.reference, data.pick), data.measures)
        changes = changes_of(data.comparisons, series, data.reference, data.pick, data.measures)
    outcome = outcome_of(changes)
    chosen = data.pick if outcome == "gain" or data.reference is None else data.reference
    lexical = _over_lexical(data, chosen)
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
    if unchanged(changes):
        word, claim = "No gain", f"{pick} and {reference} have the same figures"
    best = " It was chosen among the trained ones on dev." if len(data.trained) > 1 else ""
    fell = "; ".join(f"{name} ended below {where}" for name, where in data.regressions.items())
    warning = f" On dev {fell}." if fell else ""
    return Answer(question, word, f"{claim}: {sentence(changes)}.{best}{warning}", TONES[outcome])


def matryoshka(data: PageData) -> Answer:
    """Answer what Matryoshka costs at full size and wins at the smallest, against its twin without."""
    question = "What does Matryoshka cost and win?"
    nested = [variant for variant in data.variants if variant["matryoshka"] is not None]
    if not nested:
        return Answer(question, "Not tried", "No variant was trained with the Matryoshka loss.", "open")
    pairs = [(variant["name"], _twin(data, variant)) for variant in nested]
    name, twin = next((pair for pair in pairs if pair[1] is not None), pairs[0])
    against, measure = twin or data.reference, data.measures[0]
    shared = sorted(set(data.dims[name]) & set(data.dims.get(against or "", [])), reverse=True)
    if against is None or len(shared) < 2:
        dims = data.dims[name]
        full, small = (float(data.values(name, dim, (measure,)).mean()) for dim in (dims[0], dims[-1]))
        kept = f"{name} has {label(measure)} {full:.4f} at full size and {small:.4f} at {dims[-1]:,} dims."
        return Answer(question, "Cannot be said", f"Nothing with the same sizes was trained without it. {kept}", "open")
    ends = ("full", "small")
    series = {
        who: np.concatenate([data.values(who, dim, (measure,)) for dim in (shared[0], shared[-1])])
        for who in (against, name)
    }
    compared = compare_all(series, measures=ends, reference=against)
    at_full, at_small = (
        replace(change, measure=measure) for change in changes_of(compared, series, against, name, ends)
    )
    word = {
        ("gain", "loss"): "A trade",
        ("gain", "open"): f"Pays at {shared[-1]} dims",
        ("gain", "gain"): "Pays at both ends",
        ("open", "open"): "Makes no clear difference",
    }.get(
        (at_small.outcome, at_full.outcome),
        f"Pays at {shared[0]} dims only" if at_full.outcome == "gain" else "Does not pay",
    )
    text = f"{name} against {against}, at {shared[0]} dims: {at_full}; at {shared[-1]} dims: {at_small}."
    if twin is None:
        text += " The other was not trained, so this is the effect of training and Matryoshka together."
        return Answer(question, "Not tried apart", text, "open")
    return Answer(question, word, text, "open" if word == "A trade" else TONES[at_small.outcome])


def bm25(data: PageData, chosen: str, changes: OverLexical) -> Answer:
    """Answer whether the model that was chosen beats BM25 alone, and what their fusion gives."""
    question = "Is it better than BM25?"
    if data.lexical is None or "model" not in changes:
        return Answer(question, "Not measured", "BM25 was not measured in this run.", "open")
    name = LEXICAL[data.lexical]
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
    text = f"{claim}: {sentence(changes['model'])}."
    if "fusion" not in changes:
        return Answer(question, word, f"{text} Their fusion was not measured.", TONES[outcome])
    fusion = {
        "gain": "is better than the model alone",
        "loss": "is worse than the model alone",
        "mixed": "gains one measure on the model alone and loses another",
        "open": "shows no significant difference from the model alone",
    }[outcome_of(changes["fusion"])]
    return Answer(question, word, f"{text} The fusion of both {fusion}: {sentence(changes['fusion'])}.", TONES[outcome])


def _size_answer(data: PageData, chosen: str, small: Small) -> Answer:
    question = "How small can it get?"
    nested = [one["name"] for one in data.variants if one["matryoshka"] is not None and one["name"] != chosen]
    # Another may be smaller, as a run may hold several models with the Matryoshka loss.
    others = [how_small(data, name) for name in nested]
    best = min((small, *others), key=lambda one: one.row["bytes"] if one.row is not None else math.inf)
    if best.row is None:
        return Answer(question, "Not below full size", small.text, "open")
    texts = [best.text, *([small.text] if best is not small else []), f"{PICKED.capitalize()}."]
    return Answer(question, f"{best.row['bytes']:,} bytes a vector", " ".join(texts), "good")


def ship(data: PageData, chosen: str, tuned: Outcome | None, lexical: OverLexical, small: Small) -> Answer:
    """Answer what to ship: model, with or without BM25, at which size.

    Args:
        chosen: the trained model where it proved better, else the pretrained one.
        tuned: what training did; None where nothing could be compared.
        small: the smallest that keeps enough.
    """
    question = "What to ship?"
    model, fusion, both = (outcome_of(lexical[key]) if key in lexical else None for key in ("model", "fusion", "both"))
    if data.lexical is not None and model not in ("gain", None) and both != "gain":
        name = LEXICAL[data.lexical] if data.lexical == "bm25-stemmed" else "BM25"
        reason = (
            "is better than the model, and the fusion is not shown to be better"
            if model == "loss"
            else "needs no embeddings, and neither model nor fusion is shown to be better"
        )
        return Answer(question, f"{_capital(name)} alone", f"It {reason}.", "bad" if model == "loss" else "open")
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


def new_documents(data: PageData, chosen: str) -> Answer | None:
    """Answer whether the figures hold for documents that training did not know; None where sides share none."""
    warning = data.study["split"].get("warning")
    if not warning:
        return None
    text = f"{warning}."
    if data.slices is not None:
        rows = data.slices.filter(slice=SEEN, variant=chosen, measure=data.measures[0])
        figures = "; ".join(
            f"{label(data.measures[0])} {value:.4f} on {queries:,} queries ({name})"
            for name, queries, value in rows.select("label", "queries", "value").iter_rows()
        )
        text += f" By how many of their relevant documents training knew, {chosen} has {figures}." if figures else ""
    return Answer("Does it hold for new documents?", "Not shown", text, "bad")


def how_small(data: PageData, variant: str) -> Small:
    """Find the smallest cell of a variant that keeps `KEEP` of its full quality in the first measure, on test.

    Of many cells it is one whose interval's lower end keeps as much, since the smallest is likely the luckiest, too.
    """
    measure = data.measures[0]
    try:
        kept = kept_by(data.cells(variant), measure)
    except InputError as error:
        return Small(None, f"{_capital(str(error))}.")
    whole = kept.filter(precision="float32", rotation="none", oversampling=0).sort("dim").row(-1, named=True)
    smaller = kept.filter(kept["bytes"] < whole["bytes"], kept["oversampling"] == 0)
    if smaller.is_empty():
        return Small(None, f"Only the full size of {variant}, {whole['dim']:,} dims, was measured.")
    strict = smaller.height > MANY
    cell = smallest(smaller, KEEP, strict=strict)
    if cell is None:
        best = smaller.sort("value", "bytes", descending=[True, False]).row(0, named=True)
        stored = stored_as(best["precision"], best["rotation"], best["oversampling"])
        lower = " at the lower end of its interval" if strict else ""
        text = f"No smaller embedding of {variant} keeps {KEEP:.0%} of {label(measure)}{lower}; "
        return Small(None, f"{text}the best, {best['dim']:,} dims in {stored}, keeps {_kept(best)}.")
    row = smaller.filter(dim=cell.dim, precision=cell.precision, rotation=cell.rotation).row(0, named=True)
    unsafe = "" if row["kept_low"] >= KEEP else f", and the interval reaches below {KEEP:.0%}"
    times = f"{whole['bytes'] / row['bytes']:.3g} times smaller than {whole['bytes']:,}"
    figures = f"{row['value']:.4f} against {whole['value']:.4f} at full size{unsafe}"
    return Small(row, f"{variant} at {_cell(row)}, {times}, keeps {_kept(row)} of {label(measure)}: {figures}.")


def _cell(row: dict[str, Any]) -> str:
    stored = stored_as(row["precision"], row["rotation"], row["oversampling"])
    return f"{row['dim']:,} dims in {stored} ({row['bytes']:,} bytes a vector)"


def _kept(row: dict[str, Any]) -> str:
    return f"{row['kept']:.1%} (interval {row['kept_low']:.1%} to {row['kept_high']:.1%})"


def _over_lexical(data: PageData, chosen: str) -> OverLexical:
    if data.lexical is None:
        return {}
    pairs, fusion = {"model": (data.lexical, chosen)}, data.fused(chosen)
    if fusion is not None:
        pairs |= {"fusion": (chosen, fusion), "both": (data.lexical, fusion)}
    series = data.at_full_size((name for pair in pairs.values() for name in pair), data.measures)
    compared = compare_all(series, measures=data.measures)
    return {what: changes_of(compared, series, *pair, data.measures) for what, pair in pairs.items()}


def _twin(data: PageData, variant: dict[str, Any]) -> str | None:
    """Return the variant that differs from this one in its Matryoshka loss alone."""
    for other in data.variants:
        if other["matryoshka"] is None and all(other[key] == variant[key] for key in ("recipe", "base", "training")):
            return str(other["name"])
    return None


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
