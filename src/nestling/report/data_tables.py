"""The tables of judgments as values: counts, lengths, the score histogram, thresholds, and the sides of a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nestling.judgments.inspection import Inspection, Lengths
from nestling.report.table import Cell, Table, number_cell, row

BAR_WIDTH = 32


def counts_table(inspection: Inspection) -> Table:
    """Return counts of records, queries and documents, text lengths, and what cleaning met."""
    judgments, cleaning = inspection.judgments, inspection.judgments.cleaning
    body = [
        row("records read", f"{cleaning.read:,}", f"encoding {judgments.encoding}" if judgments.encoding else ""),
        *(row("note", "", note) for note in judgments.notes),
        *(row(f"  {what}", f"{count:,}", rule if count else "") for what, count, rule in cleaning.rules()),
        row("records kept", f"{cleaning.kept:,}", ""),
    ]
    if len(judgments) < cleaning.kept:
        body.append(row("records taken", f"{len(judgments):,}", "a random sample; all below is of these"))
    low, q1, median, q3, high = inspection.per_query
    body += [
        row("queries", f"{inspection.queries:,}", "distinct after normalising"),
        row("documents", f"{inspection.documents:,}", "distinct ids"),
        row("judged documents a query", f"{median:g}", f"middle half {q1:g} to {q3:g}, all {low:g} to {high:g}"),
        row("tokens a query", f"{inspection.query_lengths.median:g}", _remark(inspection.query_lengths)),
        row("tokens a document", f"{inspection.document_lengths.median:g}", _remark(inspection.document_lengths)),
    ]
    return Table("", ["", "", ""], [("", body)], title=judgments.source, words=(0, 2))


def lengths_table(inspection: Mapping[str, Any]) -> Table:
    """Return text lengths in tokens; `inspection` as `results.json` holds it."""
    body = []
    for name, key in (("query", "query_lengths"), ("document", "document_lengths")):
        lengths = inspection[key]
        figures = (f"{lengths[at]:,.4g}" for at in ("median", "mean", "p95", "longest"))
        limit = f"{lengths['limit']:,}"
        cut = f"{lengths['cut']:.1%} cut at {limit}" if lengths["cut"] else f"none beyond {limit}"
        body.append(row(name, *figures, cut))
    columns = ["text", "median", "mean", "95% up to", "longest", "cut"]
    return Table("Tokens a text, special tokens included.", columns, [("", body)], words=(0, 5), sortable=False)


def histogram_table(inspection: Inspection) -> Table:
    """Return the score histogram with the bars above the threshold marked."""
    most = max(bar.count for bar in inspection.bars)
    body = []
    for bar in inspection.bars:
        score = f"{bar.low:.4g}" if bar.low == bar.high else f"{bar.low:.3g} to {bar.high:.3g}"
        width = max(round(BAR_WIDTH * bar.count / most), 1 if bar.count else 0)
        block = "█" if (bar.low + bar.high) / 2 > inspection.threshold else "░"
        body.append(row(score, f"{bar.count:,}", block * width))
    dip = "no dip between two humps" if inspection.dip is None else f"the dip lies at {inspection.dip:.2f}"
    columns = ["score", "records", f"(█ above {inspection.threshold:g}, ░ not)"]
    return Table("", columns, [("", body)], title=f"Scores: {dip}", words=(2,))


def thresholds_table(inspection: Inspection) -> Table:
    """Return, for each candidate threshold, how many pairs score above it."""
    body = [row(f"{each.threshold:.4g}", f"{each.kept:,}", f"{each.share:.1%}") for each in inspection.candidates]
    if inspection.threshold not in [each.threshold for each in inspection.candidates]:
        body.append(row(f"{inspection.threshold:.4g} (in use)", f"{inspection.kept:,}", f"{inspection.share:.1%}"))
    return Table("", ["threshold", "pairs kept", "share"], [("", body)], title="Pairs above a threshold", words=())


def split_table(summary: Mapping[str, Any], *, source: str = "") -> Table:
    """Return sizes and shares by side, with the method and what was dropped; `summary` as `summarise` returns it."""
    body = []
    for name, side in summary["sides"].items():
        counts = (number_cell(side[count]) for count in ("records", "queries", "documents"))
        body.append(row(name, *counts, Cell(f"{summary['reached'][name]:.1%}", f"asked {summary['asked'][name]:.1%}")))
    dropped = summary["dropped"]
    were = "record was" if dropped == 1 else "records were"
    promise = f"; {summary['promise']}" if "promise" in summary else ""
    method = f"plit by {summary['method']}, seed {summary['seed']}: {summary['reason']}"
    caption = f"{dropped:,} {were} dropped to keep the sides apart{promise}."
    columns = ["side", "records", "queries", "documents", "share"]
    title = f"{source}, s{method}" if source else f"S{method}"
    return Table(caption, columns, [("", body)], title=title, sortable=False)


def _remark(lengths: Lengths) -> str:
    cut = f", {lengths.cut:.1%} cut at {lengths.limit}" if lengths.cut else f", none beyond {lengths.limit}"
    return f"median; mean {lengths.mean:.0f}, 95% up to {lengths.p95:.0f}, longest {lengths.longest}{cut}"
