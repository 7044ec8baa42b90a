"""The verdict: one answer a question, in words that follow from the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

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


Small = tuple[dict[str, Any] | None, str]
"""The smallest cell that keeps `KEEP`, a row of `recommend.KEPT` (None where none below full size does); a sentence."""
Reply = tuple[str, str, Tone]
"""An answer's word, text and tone."""


class Answer(NamedTuple):
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
    changes: list[Change] = []
    if data.reference is not None and data.trained:
        series = data.at_full_size((data.reference, data.pick), data.measures)
        changes = changes_of(data.comparisons, series, data.reference, data.pick, data.measures)
    outcome = outcome_of(changes)
    chosen = data.pick if outcome == "gain" or data.reference is None else data.reference
    lexical = _over_lexical(data, chosen)
    small = _how_small(data, chosen)
    replies = {
        "Does fine-tuning help?": _fine_tuning(data, changes),
        "What does Matryoshka cost and win?": _matryoshka(data),
        "Is it better than BM25?": _bm25(data, chosen, lexical),
        "How small can it get?": _size(data, chosen, small),
        "What to ship?": _ship(data, chosen, outcome if changes else None, lexical, small),
        "Does it hold for new documents?": _new_documents(data, chosen),
    }
    return [Answer(question, *reply) for question, reply in replies.items() if reply is not None]


def _fine_tuning(data: PageData, changes: Sequence[Change]) -> Reply:
    if not data.trained:
        return "Not tried", "No variant of this run was trained.", "open"
    if data.reference is None:
        return "Cannot be said", "The run has no pretrained variant to compare with.", "open"
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
    return word, f"{claim}: {sentence(changes)}.{best}{warning}", TONES[outcome]


def _matryoshka(data: PageData) -> Reply:
    """Compare a variant with the one that differs in its Matryoshka loss alone, at full size and at the smallest."""
    nested = [variant for variant in data.variants if variant["matryoshka"] is not None]
    if not nested:
        return "Not tried", "No variant was trained with the Matryoshka loss.", "open"
    twins = [
        (one["name"], other["name"])
        for one in nested
        for other in data.variants
        if other["matryoshka"] is None and all(other[key] == one[key] for key in ("recipe", "base", "training"))
    ]
    name, twin = next(iter(twins), (nested[0]["name"], None))
    against, measure = twin or data.reference, data.measures[0]
    shared = sorted(set(data.dims[name]) & set(data.dims.get(against or "", [])), reverse=True)
    if against is None or len(shared) < 2:
        dims = data.dims[name]
        full, small = (float(data.values(name, dim, (measure,)).mean()) for dim in (dims[0], dims[-1]))
        kept = f"{name} has {label(measure)} {full:.4f} at full size and {small:.4f} at {dims[-1]:,} dims."
        return "Cannot be said", f"Nothing with the same sizes was trained without it. {kept}", "open"
    ends = ("full", "small")
    series = {
        who: np.concatenate([data.values(who, dim, (measure,)) for dim in (shared[0], shared[-1])])
        for who in (against, name)
    }
    compared = compare_all(series, measures=ends, reference=against)
    changes = changes_of(compared, series, against, name, ends)
    at_full, at_small = (replace(change, measure=measure) for change in changes)
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
        return "Not tried apart", text, "open"
    return word, text, "open" if word == "A trade" else TONES[at_small.outcome]


def _bm25(data: PageData, chosen: str, changes: OverLexical) -> Reply:
    if data.lexical is None:
        return "Not measured", "BM25 was not measured in this run.", "open"
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
        return word, f"{text} Their fusion was not measured.", TONES[outcome]
    fusion = {
        "gain": "is better than the model alone",
        "loss": "is worse than the model alone",
        "mixed": "gains one measure on the model alone and loses another",
        "open": "shows no significant difference from the model alone",
    }[outcome_of(changes["fusion"])]
    return word, f"{text} The fusion of both {fusion}: {sentence(changes['fusion'])}.", TONES[outcome]


def _size(data: PageData, chosen: str, small: Small) -> Reply:
    nested = [one["name"] for one in data.variants if one["matryoshka"] is not None and one["name"] != chosen]
    # Another may be smaller, as a run may hold several models with the Matryoshka loss.
    cells = [small, *(_how_small(data, name) for name in nested)]
    row, text = min(cells, key=lambda cell: cell[0]["bytes"] if cell[0] is not None else math.inf)
    if row is None:
        return "Not below full size", small[1], "open"
    texts = dict.fromkeys((text, small[1], f"{PICKED.capitalize()}."))
    return f"{row['bytes']:,} bytes a vector", " ".join(texts), "good"


def _ship(data: PageData, chosen: str, tuned: Outcome | None, lexical: OverLexical, small: Small) -> Reply:
    """Advise a model, with or without BM25, and its size; `tuned` is None where training was compared with nothing."""
    model, fusion, both = (outcome_of(lexical[key]) if key in lexical else None for key in ("model", "fusion", "both"))
    if data.lexical is not None and model not in ("gain", None) and both != "gain":
        name = LEXICAL[data.lexical] if data.lexical == "bm25-stemmed" else "BM25"
        reason = (
            "is better than the model, and the fusion is not shown to be better"
            if model == "loss"
            else "needs no embeddings, and neither model nor fusion is shown to be better"
        )
        return f"{_capital(name)} alone", f"It {reason}.", "bad" if model == "loss" else "open"
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
    if small[0] is not None:
        alone = ", quality counted without BM25" if fused else ""
        size, picked = f"at {_cell(small[0])}{alone}", f" That size was {PICKED}."
    return word, f"{why}. Store it {size}.{picked}", "good" if tuned == "gain" else "open"


def _new_documents(data: PageData, chosen: str) -> Reply | None:
    """Say that the figures may not hold for documents that training did not know; None where sides share none."""
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
    return "Not shown", text, "bad"


def _how_small(data: PageData, variant: str) -> Small:
    """Find the smallest cell of a variant that keeps `KEEP` of its full quality in the first measure, on test.

    Of many cells it is one whose interval's lower end keeps as much, since the smallest is likely the luckiest, too.
    """
    measure = data.measures[0]
    try:
        kept = kept_by(data.cells(variant), measure)
    except InputError as error:
        return None, f"{_capital(str(error))}."
    whole = kept.filter(precision="float32", rotation="none", oversampling=0).sort("dim").row(-1, named=True)
    smaller = kept.filter(kept["bytes"] < whole["bytes"], kept["oversampling"] == 0)
    if smaller.is_empty():
        return None, f"Only the full size of {variant}, {whole['dim']:,} dims, was measured."
    strict = smaller.height > MANY
    cell = smallest(smaller, KEEP, strict=strict)
    if cell is None:
        best = smaller.sort("value", "bytes", descending=[True, False]).row(0, named=True)
        stored = stored_as(best["precision"], best["rotation"], best["oversampling"])
        lower = " at the lower end of its interval" if strict else ""
        text = f"No smaller embedding of {variant} keeps {KEEP:.0%} of {label(measure)}{lower}; "
        return None, f"{text}the best, {best['dim']:,} dims in {stored}, keeps {_kept(best)}."
    row = smaller.filter(dim=cell.dim, precision=cell.precision, rotation=cell.rotation).row(0, named=True)
    unsafe = "" if row["kept_low"] >= KEEP else f", and the interval reaches below {KEEP:.0%}"
    times = f"{whole['bytes'] / row['bytes']:.3g} times smaller than {whole['bytes']:,}"
    figures = f"{row['value']:.4f} against {whole['value']:.4f} at full size{unsafe}"
    return row, f"{variant} at {_cell(row)}, {times}, keeps {_kept(row)} of {label(measure)}: {figures}."


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


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
