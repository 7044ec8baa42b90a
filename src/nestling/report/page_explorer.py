"""The query explorer's data: rankings of all test queries as compact JSON, safe inside a page."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
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
"""Scores and figures are told in so many steps, from the lowest of a system to its highest."""

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Explorer:
    """What the page needs to show queries.

    Attributes:
        json: the data, to stand in a script element.
        notes: what was left out or shortened, a sentence each.
    """

    json: str
    notes: list[str]


@dataclass(frozen=True)
class _System:
    variant: str
    dim: int

    @property
    def name(self) -> str:
        return f"{self.variant}, {self.dim} dims" if self.dim else self.variant


def explorer(data: PageData, *, first: str | None, second: str, budget: int = BUDGET) -> Explorer | None:
    """Return the explorer's data; None where the run kept no rankings or no texts.

    Each variant is there at its full and at its smallest size. What does not fit is left out in this order: characters
    of long texts, fusions at the smallest size, then queries from the end of the list.

    Args:
        first, second: the variants that are compared when the page opens.
        budget: bytes that the JSON may take.
    """
    if data.rankings is None or data.test is None:
        return None
    settings = data.study["experiment"]["evaluation"]
    qrels = Qrels.from_judgments(data.test, threshold=data.study["threshold"], protocol=settings["protocol"])
    every = _systems(data)
    names = list(data.dims)
    few = [one for one in every if not is_fused(one.variant, names) or one.dim == data.dims[one.variant][0]]
    order = _order(data, qrels, first, second)
    attempts = [(every, length, qrels.n_queries) for length in LENGTHS]
    attempts += [(few, LENGTHS[-1], qrels.n_queries >> halvings) for halvings in range(qrels.n_queries.bit_length())]
    for systems, length, n_queries in attempts:
        rows = np.sort(order[:n_queries])
        text, cut = _payload(data, qrels, systems, rows, length, first, second)
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
    return Explorer(text, notes)


def safe_json(value: Any) -> str:
    """Return `value` as JSON that ends no script element and opens no comment, wherever it stands in HTML."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character, escaped in _UNSAFE.items():
        text = text.replace(character, escaped)
    return text


def _systems(data: PageData) -> list[_System]:
    assert data.rankings is not None
    kept = set(data.rankings.select("variant", "dim").unique().rows())
    return [
        _System(variant, dim)
        for variant, dims in data.dims.items()
        for dim in dict.fromkeys((dims[0], dims[-1]))
        if (variant, dim) in kept
    ]


def _order(data: PageData, qrels: Qrels, first: str | None, second: str) -> NDArray[np.int64]:
    """Return rows of queries, those first on which the two variants differ most."""
    measure = data.measures[:1]
    ids = np.argsort(np.array(qrels.query_ids, dtype=object), kind="stable")
    changes = data.values(second, data.dims[second][0], measure)[0]
    if first is not None:
        changes = changes - data.values(first, data.dims[first][0], measure)[0]
    by_row = np.empty(len(ids))
    by_row[ids] = np.abs(changes)
    order: NDArray[np.int64] = np.argsort(-by_row, kind="stable")
    return order


def _payload(
    data: PageData,
    qrels: Qrels,
    systems: Sequence[_System],
    rows: NDArray[np.int64],
    length: int,
    first: str | None,
    second: str,
) -> tuple[str, int]:
    """Return the JSON, and how many texts were cut."""
    assert data.rankings is not None
    row_of = {qrels.query_ids[row]: n for n, row in enumerate(rows)}
    ranked = data.rankings.filter(pl.col("query_id").is_in(list(row_of)), pl.col("rank") <= TOP)
    ids = np.argsort(np.argsort(np.array(qrels.query_ids, dtype=object), kind="stable"))[rows]
    tables, values = [], []
    for system in systems:
        table = ranked.filter(pl.col("variant") == system.variant, pl.col("dim") == system.dim)
        columns = np.full((len(rows), TOP), -1, dtype=np.int64)
        scores = np.full((len(rows), TOP), np.nan)
        for query, rank, document, score in table.select("query_id", "rank", "document_id", "score").iter_rows():
            columns[row_of[query], rank - 1] = qrels.column_of[document]
            scores[row_of[query], rank - 1] = score
        tables.append((columns, scores))
        values.append(data.values(system.variant, system.dim, data.measures)[:, ids])
    relevant = [qrels.relevant_columns[qrels.relevant_indptr[row] : qrels.relevant_indptr[row + 1]] for row in rows]
    shown = np.unique(np.concatenate([*(columns.ravel() for columns, _ in tables), *relevant]))
    shown = shown[shown >= 0]
    # Numbers of two bytes where there are few documents, else of four; the highest stands for none.
    kind, none = ("uint16", 0xFFFF) if len(shown) < 0xFFFF else ("uint32", 0xFFFFFFFF)
    place = np.full(qrels.n_documents + 1, none, dtype=kind)
    place[shown] = np.arange(len(shown))
    texts = [qrels.documents[column] for column in shown]
    queries = [qrels.queries[row] for row in rows]
    names = [system.name for system in systems]
    full = {variant: _System(variant, dims[0]).name for variant, dims in data.dims.items()}
    payload = {
        "systems": names,
        "start": [names.index(full[name]) if name and full[name] in names else 0 for name in (first, second)],
        "measures": [label(measure) for measure in data.measures],
        "queries": [shortened(text, length) for text in queries],
        "documents": [shortened(text, length) for text in texts],
        "relevant": [place[columns].tolist() for columns in relevant],
        "top": TOP,
        "none": none,
        "ranks": [_packed(place[columns]) for columns, _ in tables],
        "scores": [_steps(scores) for _, scores in tables],
        "values": [[_packed(np.rint(row * SCALE).astype(np.uint16)) for row in rows_] for rows_ in values],
        "scale": SCALE,
    }
    return safe_json(payload), sum(len(text) > length for text in (*texts, *queries))


def _steps(scores: NDArray[np.float64]) -> dict[str, Any]:
    """Pack scores as steps of equal size between the lowest and the highest."""
    seen = scores[np.isfinite(scores)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
    steps = np.nan_to_num((scores - low) / ((high - low) or 1.0) * SCALE)
    return {"low": low, "high": high, "steps": _packed(np.rint(steps).astype(np.uint16))}


def _packed(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")
