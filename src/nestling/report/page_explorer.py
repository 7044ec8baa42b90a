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
from nestling.report.page_data import PageData
from nestling.report.page_svg import without_controls
from nestling.report.tables import is_fused, label

TOP = 10
BUDGET = 3_900_000
"""Bytes that the JSON may take, so that the whole page stays below 5 MB."""
LENGTHS = (240, 120, 80)
"""Characters that a text may have; the next is taken where the one before does not fit."""
NONE = 0xFFFFFFFF
SCALE = 65_535
"""Scores and figures are told in so many steps, from the lowest of a system to its highest."""

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Explorer:
    """What the page needs to show queries.

    Attributes:
        json: the data, to stand in a script element.
        notes: what was left out or shortened, a sentence each.
        systems: the names of what can be compared.
    """

    json: str
    notes: list[str]
    systems: list[str]


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
    few = [system for system in every if not _small_fusion(system, data)]
    order = _order(data, qrels, first, second)
    attempts = [(every, length, qrels.n_queries) for length in LENGTHS]
    attempts += [(few, LENGTHS[-1], qrels.n_queries >> halvings) for halvings in range(qrels.n_queries.bit_length())]
    for systems, length, n_queries in attempts:
        rows = np.sort(order[:n_queries])
        text, cut = _payload(data, qrels, systems, rows, length, first, second)
        if len(text.encode()) <= budget or n_queries <= 1:
            break
    notes = _notes(data, every, systems, len(rows), qrels.n_queries, length, cut)
    return Explorer(text, notes, [system.name for system in systems])


def safe_json(value: Any) -> str:
    """Return `value` as JSON that ends no script element and opens no comment, wherever it stands in HTML."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character, escaped in _UNSAFE.items():
        text = text.replace(character, escaped)
    return text


def shortened(text: str, length: int) -> str:
    """Return `text` in `length` characters at most, with an ellipsis where it was cut."""
    text = without_controls(text)
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _systems(data: PageData) -> list[_System]:
    assert data.rankings is not None
    kept = set(data.rankings.select("variant", "dim").unique().rows())
    chosen = [
        _System(variant, dim)
        for variant, dims in data.dims.items()
        for dim in dict.fromkeys((dims[0], dims[-1]))
        if (variant, dim) in kept
    ]
    return chosen


def _small_fusion(system: _System, data: PageData) -> bool:
    return is_fused(system.variant, list(data.dims)) and system.dim != data.dims[system.variant][0]


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
    place = np.full(qrels.n_documents + 1, NONE, dtype=np.uint32)
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
        "none": NONE,
        "ranks": [_packed(place[columns]) for columns, _ in tables],
        "scores": [_steps(scores) for _, scores in tables],
        "values": [[_packed(np.rint(row * SCALE).astype(np.uint16)) for row in rows_] for rows_ in values],
        "scale": SCALE,
    }
    # Bytes of two where there are few documents, else of four.
    if len(shown) < 0xFFFF:
        payload["none"] = 0xFFFF
        payload["ranks"] = [_packed(np.minimum(place[columns], 0xFFFF).astype(np.uint16)) for columns, _ in tables]
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


def _notes(
    data: PageData,
    every: Sequence[_System],
    systems: Sequence[_System],
    shown: int,
    n_queries: int,
    length: int,
    cut: int,
) -> list[str]:
    notes = []
    if any(len(dims) > 2 for dims in data.dims.values()):
        notes.append("Each model is here at its full and at its smallest size; sizes between are left out.")
    if cut:
        notes.append(f"{cut:,} texts longer than {length} characters are cut.")
    if len(systems) < len(every):
        notes.append("Fusions with BM25 at the smallest size are left out for the page's size.")
    if shown < n_queries:
        notes.append(
            f"Of {n_queries:,} queries the {shown:,} are here on which the two models that the page opens with "
            "differ most; the others are left out for the page's size."
        )
    return notes
