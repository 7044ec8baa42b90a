"""The verdict: one answer a question, in words that follow from the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from nestling.errors import InputError
from nestling.evaluation.recommend import MANY, kept_by, smallest
from nestling.evaluation.significance import compare_all
from nestling.evaluation.slices import SEEN
from nestling.report.grid_view import share, stored_as
from nestling.report.page_data import PageData
from nestling.report.tables import SIGNIFICANT, label, p_value, percent, points

Outcome = Literal["gain", "loss", "mixed", "open"]
Tone = Literal["good", "bad", "open"]
PICKED = "picked on test, so what it keeps is optimistic: confirm it with nestling shrink, which picks on dev"
TONES: dict[Outcome, Tone] = {"gain": "good", "loss": "bad", "mixed": "open", "open": "open"}
ALPHA = 1e-12
"""Means that differ by less are the same but for rounding."""
KEEP = 0.98
"""Share of the full embedding's quality that a smaller one has to keep to be recommended."""


@dataclass(frozen=True)
class Change:
    """One measure of two systems on the same queries: means in 0..1, the difference's interval of 95 % and its p."""

    measure: str
    base: float
    value: float
    low: float
    high: float
    p: float

    @property
    def outcome(self) -> Outcome:
        """`gain` or `loss` where the difference is significant, else `open`."""
        if self.p >= SIGNIFICANT or abs(self.value - self.base) < ALPHA:
            return "open"
        return "gain" if self.value > self.base else "loss"

    def __str__(self) -> str:
        p = p_value(self.p)
        proof = f"p {p[0]} {p[1:]}" if p.startswith("<") else f"p = {p}"
        unproven = "" if self.p < SIGNIFICANT else ", not significant"
        if self.base > 0:
            gain, low, high = (percent(100 * x / self.base) for x in (self.value - self.base, self.low, self.high))
            change = f"{gain}, interval {low} to {high}"
        else:
            change = f"{points(self.value - self.base)} points, interval {points(self.low)} to {points(self.high)}"
        return f"{label(self.measure)} {self.base:.4f} → {self.value:.4f} ({change}; {proof}{unproven})"


def outcome_of(changes: Sequence[Change]) -> Outcome:
    """Return what several measures say together: `mixed` where one gains and another loses significantly."""
    found = {change.outcome for change in changes}
    if {"gain", "loss"} <= found:
        return "mixed"
    return "gain" if "gain" in found else "loss" if "loss" in found else "open"


def sentence(text: str) -> str:
    """Return `text` with a capital at its start; names of variants keep their case."""
    first = text.split(" ", 1)[0]
    return text[0].upper() + text[1:] if first in {"the", "between", "what", "stemmed", "unstemmed"} else text


@dataclass(frozen=True)
class Small:
    """The smallest cell that keeps `KEEP` of a variant's quality.

    Attributes:
        row: the cell's row of `advice.KEPT`; None where no cell below the full one keeps enough.
        text: a sentence with its figures.
    """

    row: dict[str, Any] | None
    text: str

    @property
    def cell(self) -> str:
        """The cell in words, empty where there is none."""
        if self.row is None:
            return ""
        stored = stored_as(self.row["precision"], self.row["rotation"], self.row["oversampling"])
        return f"{self.row['dim']:,} dims in {stored} ({self.row['bytes']:,} bytes a vector)"


def how_small(data: PageData, variant: str) -> Small:
    """Find the smallest cell of a variant that keeps `KEEP` of its full quality in the first measure, on test.

    Of many cells it is one whose interval's lower end keeps as much, since the smallest is likely the luckiest, too.
    """
    measure = data.measures[0]
    try:
        kept = kept_by(data.cells(variant), measure)
    except InputError as error:
        return Small(None, f"{sentence(str(error))}.")
    full = kept.filter(kept["precision"] == "float32", kept["rotation"] == "none", kept["oversampling"] == 0)
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
    found = smaller.filter(
        smaller["dim"] == cell.dim, smaller["precision"] == cell.precision, smaller["rotation"] == cell.rotation
    ).row(0, named=True)
    one = Small(found, "")
    safe = "" if found["kept_low"] >= KEEP else f", and the interval reaches below {KEEP:.0%}"
    times = whole["bytes"] / found["bytes"]
    text = (
        f"{variant} at {one.cell}, {times:.3g} times smaller than {whole['bytes']:,}, keeps {_kept(found)} of "
        f"{label(measure)}: {found['value']:.4f} against {whole['value']:.4f} at full size{safe}."
    )
    return Small(found, text)


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

    Variants are chosen by their figures on dev; every figure that is told is of test. The size alone is picked on test,
    and wherever it stands that is said. Fine-tuning's p are those of the
    run's comparisons, corrected for their number by Holm; the others are corrected within their own question.
    """
    tuning = fine_tuning(data)
    changes = _tuning_changes(data)
    outcome = outcome_of(changes)
    chosen = data.pick if outcome == "gain" or data.reference is None else data.reference
    lexical = _lexical_changes(data, chosen)
    small = how_small(data, chosen)
    caveat = new_documents(data, chosen)
    return [
        tuning,
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
        rows = data.slices.filter(
            pl.col("slice") == SEEN, pl.col("variant") == chosen, pl.col("measure") == data.measures[0]
        )
        figures = [
            f"{label(data.measures[0])} {value:.4f} on {queries:,} queries ({name})"
            for name, queries, value in rows.select("label", "queries", "value").iter_rows()
        ]
    told = (
        f" By how many of their relevant documents training knew, {chosen} has {'; '.join(figures)}." if figures else ""
    )
    return Answer("Does it hold for new documents?", "Not shown", f"{warning}.{told}", "bad")


def fine_tuning(data: PageData) -> Answer:
    """Answer whether fine-tuning helps: the best trained variant on dev against the pretrained one, on test."""
    question = "Does fine-tuning help?"
    if not data.trained:
        return Answer(question, "Not tried", "No variant of this run was trained.", "open")
    if data.reference is None:
        return Answer(question, "Cannot be said", "The run has no pretrained variant to compare with.", "open")
    changes = _tuning_changes(data)
    outcome = outcome_of(changes)
    figures = _listed(changes)
    same = all(abs(change.value - change.base) < ALPHA for change in changes)
    gains = [label(change.measure) for change in changes if change.outcome == "gain"]
    losses = [label(change.measure) for change in changes if change.outcome == "loss"]
    word = {
        "gain": "Yes" if len(gains) == len(changes) else f"Yes, in {' and '.join(gains)}",
        "loss": "No, it is a regression",
        "mixed": "Mixed",
        "open": "No gain" if same else "Not shown",
    }[outcome]
    told = {
        "gain": f"{data.pick} is better than {data.reference}",
        "loss": f"{data.pick} is worse than {data.reference} in {' and '.join(losses)}",
        "mixed": f"{data.pick} gains {' and '.join(gains)} on {data.reference} but loses {' and '.join(losses)}",
        "open": f"{data.pick} and {data.reference} have the same figures"
        if same
        else f"the difference between {data.pick} and {data.reference} may be chance",
    }[outcome]
    best = " It was chosen among the trained ones on dev." if len(data.trained) > 1 else ""
    fell = [f"{name} ended below {where}" for name, where in data.regressions.items()]
    warned = f" On dev {'; '.join(fell)}." if fell else ""
    return Answer(question, word, f"{sentence(told)}: {figures}.{best}{warned}", TONES[outcome])


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
    series = {
        who: np.concatenate([data.values(who, dim, (measure,)) for dim in (full, small)]) for who in (against, name)
    }
    at_full, at_small = _changes(series, against, name, (measure, measure))
    word = {
        ("gain", "loss"): "A trade",
        ("gain", "open"): f"Pays at {small} dims",
        ("gain", "gain"): "Pays at both ends",
        ("loss", "loss"): "Does not pay",
        ("loss", "open"): "Does not pay",
        ("loss", "gain"): f"Pays at {full} dims only",
        ("open", "loss"): "Does not pay",
        ("open", "open"): "Makes no clear difference",
        ("open", "gain"): f"Pays at {full} dims only",
    }[at_small.outcome, at_full.outcome]
    apart = "" if twin else " The other was not trained, so this is the effect of training and Matryoshka together."
    tone = "good" if at_small.outcome == "gain" and at_full.outcome != "loss" else TONES[at_small.outcome]
    if tone == "good" and at_full.outcome == "loss":
        tone = "open"
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
    word, told = {
        "gain": (f"Yes{where}", f"{chosen} is better than {name}{where}"),
        "loss": (f"No, BM25 alone is better{where}", f"{name} without any model is better than {chosen}{where}"),
        "mixed": ("Mixed", f"between {name} and {chosen} one measure rises and the other falls"),
        "open": ("Not shown", f"between {name} and {chosen} there is no significant difference"),
    }[outcome]
    text = f"{sentence(told)}: {_listed(changes['model'])}."
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
    size = f"at {small.cell}" if small.row is not None else "at its full size"
    alone = ", quality counted without BM25" if fused and small.row is not None else ""
    picked = f" That size was {PICKED}." if small.row is not None else ""
    return Answer(question, word, f"{why}. Store it {size}{alone}.{picked}", "good" if tuned == "gain" else "open")


def _size_answer(data: PageData, chosen: str, small: Small) -> Answer:
    question = "How small can it get?"
    texts, best = [small.text], small
    for variant in data.variants:
        if variant["matryoshka"] is not None and variant["name"] != chosen:
            other = how_small(data, variant["name"])
            # Several may be smaller, as a run may hold several models with the Matryoshka loss.
            if other.row is not None and (best.row is None or other.row["bytes"] < best.row["bytes"]):
                best = other
    if best is not small:
        texts.insert(0, best.text)
    if best.row is not None:
        texts.append(f"{PICKED.capitalize()}.")
    word = f"{best.row['bytes']:,} bytes a vector" if best.row is not None else "Not below full size"
    return Answer(question, word, " ".join(texts), "good" if best.row is not None else "open")


def _tuning_changes(data: PageData) -> list[Change]:
    if data.reference is None or not data.trained:
        return []
    full = {name: data.dims[name][0] for name in (data.reference, data.pick)}
    changes = []
    for measure in data.measures:
        rows = [
            row
            for row in data.comparisons.iter_rows(named=True)
            if (row["a"], row["b"], row["measure"]) == (data.reference, data.pick, measure)
        ]
        base, value = (float(data.values(name, dim, (measure,)).mean()) for name, dim in full.items())
        changes += [Change(measure, base, value, row["low"], row["high"], row["p_holm"]) for row in rows]
    return changes


def _lexical_changes(data: PageData, chosen: str) -> dict[str, list[Change]]:
    """Return the model over BM25, the fusion over the model, and the fusion over BM25, as far as measured."""
    if data.lexical is None:
        return {}
    fusion = data.fused(chosen)
    names = [data.lexical, chosen, *([fusion] if fusion else [])]
    series = {name: data.values(name, data.dims[name][0], data.measures) for name in names}
    pairs = {(data.lexical, chosen): "model", (chosen, fusion): "fusion", (data.lexical, fusion): "both"}
    changes: dict[str, list[Change]] = {}
    for row in compare_all(series, measures=data.measures).iter_rows(named=True):
        n = data.measures.index(row["measure"])
        base, value = (float(series[row[side]][n].mean()) for side in ("a", "b"))
        change = Change(row["measure"], base, value, row["low"], row["high"], row["p_holm"])
        changes.setdefault(pairs[row["a"], row["b"]], []).append(change)
    return changes


def _changes(series: dict[str, Any], a: str, b: str, measures: Sequence[str]) -> list[Change]:
    names = [str(n) for n in range(len(measures))]
    found = compare_all({name: series[name] for name in (a, b)}, measures=names, reference=a)
    return [
        Change(measure, float(base.mean()), float(value.mean()), row["low"], row["high"], row["p_holm"])
        for measure, base, value, row in zip(measures, series[a], series[b], found.iter_rows(named=True), strict=True)
    ]


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
