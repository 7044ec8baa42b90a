"""The query explorer's data: rankings of all test queries as compact JSON, safe inside a page."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from markupsafe import Markup
from numpy.typing import NDArray

from nestling.evaluation.qrels import Qrels
from nestling.report.format import label
from nestling.report.page_data import PageData
from nestling.report.render.html import shortened
from nestling.report.tables import is_fused

TOP = 10
BUDGET = 3_900_000
"""Bytes that the JSON may take, so that the whole page stays below 5 MB."""
LENGTHS = (240, 120, 80)
"""Characters that a text may have; the next is taken where the one before does not fit."""
SCALE = 65_535
"""Steps from a system's lowest score or figure to its highest."""

_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}

System = tuple[str, int]
"""A variant and its dims, 0 for BM25."""


class Explorer(NamedTuple):
    """The data of the explorer, to stand in a script element, and a sentence for each thing that was left out."""

    json: Markup
    notes: list[str]


def explorer(data: PageData, *, first: str | None, second: str, budget: int = BUDGET) -> Explorer | None:
    """Return the explorer's data; None where the run kept no rankings or no texts.

    Each variant is there at its full and at its smallest size. What does not fit into `budget` bytes is left out in
    this order: characters of long texts, fusions at the smallest size, then queries from the end of the list.

    Args:
        first, second: the variants that are compared when the page opens.
    """
    if data.rankings is None or data.test is None:
        return None
    protocol = data.study["experiment"]["evaluation"]["protocol"]
    qrels = Qrels.from_judgments(data.test, threshold=data.study["threshold"], protocol=protocol)
    ranked = set(data.rankings.select("variant", "dim").unique().rows())
    ends = dict.fromkeys((variant, dims[end]) for variant, dims in data.dims.items() for end in (0, -1))
    every = [system for system in ends if system in ranked]
    few = [(name, dim) for name, dim in every if not is_fused(name, data.dims) or dim == data.dims[name][0]]
    # The place of each query in the order of ids, which is that of `PageData.values`.
    by_id = np.argsort(np.argsort(np.array(qrels.query_ids, dtype=object), kind="stable"))
    values = [data.values(name, data.dims[name][0], data.measures[:1])[0] for name in (second, first) if name]
    change = np.abs(values[0] - values[1]) if first else values[0]
    order = np.argsort(-change[by_id], kind="stable")
    attempts = [(every, length, qrels.n_queries) for length in LENGTHS]
    attempts += [(few, LENGTHS[-1], qrels.n_queries >> halvings) for halvings in range(qrels.n_queries.bit_length())]
    for systems, length, n_queries in attempts:
        rows = np.sort(order[:n_queries])
        text, cut = _payload(data, qrels, systems, rows, by_id[rows], length, (first, second))
        if len(text.encode()) <= budget or n_queries <= 1:
            break
    notes = []
    if any(len(dims) > 2 for dims in data.dims.values()):
        notes.append("Each model is here at its full and at its smallest size; sizes between are left out.")
    if cut:
        notes.append(f"{cut:,} texts longer than {length} characters are cut.")
    if len(systems) < len(every):
        notes.append("Fusions with BM25 at the smallest size are left out for the page's size.")
    if len(rows) < qrels.n_queries:
        notes.append(
            f"Of {qrels.n_queries:,} queries the {len(rows):,} are here on which the two models that the page opens "
            "with differ most; the others are left out for the page's size."
        )
    return Explorer(Markup(text), notes)


def safe_json(value: Any) -> str:
    """Return `value` as JSON that ends no script element and opens no comment, wherever it stands in HTML."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.translate(_UNSAFE)


def _payload(
    data: PageData,
    qrels: Qrels,
    systems: Sequence[System],
    rows: NDArray[np.intp],
    by_id: NDArray[np.intp],
    length: int,
    start: Sequence[str | None],
) -> tuple[str, int]:
    """Return the JSON of these systems on `rows` of `qrels`, `by_id` of the figures; and how many texts were cut."""
    assert data.rankings is not None
    row_of = {qrels.query_ids[row]: n for n, row in enumerate(rows)}
    ranked = data.rankings.filter(pl.col("query_id").is_in(list(row_of)), pl.col("rank") <= TOP)
    columns = np.full((len(systems), len(rows), TOP), -1)
    scores = np.full(columns.shape, np.nan)
    for n, (variant, dim) in enumerate(systems):
        table = ranked.filter(variant=variant, dim=dim)
        for query, rank, document, score in table.select("query_id", "rank", "document_id", "score").iter_rows():
            columns[n, row_of[query], rank - 1] = qrels.column_of[document]
            scores[n, row_of[query], rank - 1] = score
    relevant = [qrels.relevant_columns[qrels.relevant_indptr[row] : qrels.relevant_indptr[row + 1]] for row in rows]
    shown = np.unique(np.concatenate([columns.ravel(), *relevant]))
    shown = shown[shown >= 0]
    # Numbers of two bytes where there are few documents, else of four; the highest stands for none.
    kind, none = ("uint16", 0xFFFF) if len(shown) < 0xFFFF else ("uint32", 0xFFFFFFFF)
    place = np.full(qrels.n_documents + 1, none, dtype=kind)
    place[shown] = np.arange(len(shown))
    texts = [qrels.documents[column] for column in shown]
    queries = [qrels.queries[row] for row in rows]
    full = [(name, data.dims[name][0]) if name else None for name in start]
    payload = {
        "systems": [f"{variant}, {dim} dims" if dim else variant for variant, dim in systems],
        "start": [systems.index(one) if one in systems else 0 for one in full],
        "measures": [label(measure) for measure in data.measures],
        "queries": [shortened(text, length) for text in queries],
        "documents": [shortened(text, length) for text in texts],
        "relevant": [place[own].tolist() for own in relevant],
        "top": TOP,
        "none": none,
        "ranks": [_base64(place[one]) for one in columns],
        "scores": [_steps(one) for one in scores],
        "values": [[_base64(_whole(row[by_id])) for row in data.values(*system, data.measures)] for system in systems],
        "scale": SCALE,
    }
    return safe_json(payload), sum(len(text) > length for text in (*texts, *queries))


def _steps(scores: NDArray[np.float64]) -> dict[str, Any]:
    """Pack scores as steps of equal size between the lowest and the highest."""
    finite = scores[np.isfinite(scores)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    return {"low": low, "high": high, "steps": _base64(_whole(np.nan_to_num((scores - low) / ((high - low) or 1.0))))}


def _whole(shares: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.rint(shares * SCALE).astype(np.uint16)


def _base64(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")
