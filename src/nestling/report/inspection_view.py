"""An inspection as terminal tables: counts, lengths, the score histogram, and what each threshold keeps."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from nestling.judgments.inspection import Inspection, Lengths

BAR_WIDTH = 32


def counts_table(inspection: Inspection) -> Table:
    """Return counts of records, queries and documents, text lengths, and what cleaning met."""
    judgments = inspection.judgments
    table = Table(title=escape(judgments.source), title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("remark", overflow="fold")
    table.add_row(
        "records read", f"{judgments.cleaning.read:,}", f"encoding {judgments.encoding}" if judgments.encoding else ""
    )
    for note in judgments.notes:
        table.add_row("note", "", escape(note))
    for what, count, rule in judgments.cleaning.rules():
        table.add_row(f"  {what}", f"{count:,}", rule if count else "")
    table.add_row("records kept", f"{judgments.cleaning.kept:,}", "")
    if len(judgments) < judgments.cleaning.kept:
        table.add_row("records taken", f"{len(judgments):,}", "a random sample; all below is of these")
    table.add_row("queries", f"{inspection.queries:,}", "distinct after normalising")
    table.add_row("documents", f"{inspection.documents:,}", "distinct ids")
    low, q1, median, q3, high = inspection.per_query
    table.add_row("judged documents a query", f"{median:g}", f"middle half {q1:g} to {q3:g}, all {low:g} to {high:g}")
    for name, lengths in (("query", inspection.query_lengths), ("document", inspection.document_lengths)):
        table.add_row(f"tokens a {name}", f"{lengths.median:g}", _remark(lengths))
    return table


def histogram_table(inspection: Inspection) -> Table:
    """Return the score histogram with the bars above the threshold marked."""
    most = max(bar.count for bar in inspection.bars)
    dip = "no dip between two humps" if inspection.dip is None else f"the dip lies at {inspection.dip:.2f}"
    table = Table(title=f"Scores: {dip}", title_justify="left")
    table.add_column("score", justify="right")
    table.add_column("records", justify="right")
    table.add_column(f"(█ above {inspection.threshold:g}, ░ not)")
    for bar in inspection.bars:
        full = (bar.low + bar.high) / 2 > inspection.threshold
        score = f"{bar.low:.4g}" if bar.low == bar.high else f"{bar.low:.3g} to {bar.high:.3g}"
        width = round(BAR_WIDTH * bar.count / most)
        table.add_row(score, f"{bar.count:,}", ("█" if full else "░") * max(width, 1 if bar.count else 0))
    return table


def thresholds_table(inspection: Inspection) -> Table:
    """Return, for each candidate threshold, how many pairs score above it."""
    table = Table(title="Pairs above a threshold", title_justify="left")
    table.add_column("threshold", justify="right")
    table.add_column("pairs kept", justify="right")
    table.add_column("share", justify="right")
    for candidate in inspection.candidates:
        table.add_row(f"{candidate.threshold:.4g}", f"{candidate.kept:,}", f"{candidate.share:.1%}")
    if inspection.threshold not in [candidate.threshold for candidate in inspection.candidates]:
        table.add_row(f"{inspection.threshold:.4g} (in use)", f"{inspection.kept:,}", f"{inspection.share:.1%}")
    return table


def _remark(lengths: Lengths) -> str:
    cut = f", {lengths.cut:.1%} cut at {lengths.limit}" if lengths.cut else f", none beyond {lengths.limit}"
    return f"median; mean {lengths.mean:.0f}, 95% up to {lengths.p95:.0f}, longest {lengths.longest}{cut}"
