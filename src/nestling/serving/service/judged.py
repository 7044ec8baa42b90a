"""Documents that raters judged relevant for a query: the marks of the search page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nestling.environment import needed
from nestling.judgments.identity import normalise
from nestling.serving.index.documents import Documents


@dataclass(frozen=True)
class Judged:
    """Queries as first judged, in order; and by normalised query the ids of its relevant documents, none empty."""

    texts: tuple[str, ...] = ()
    relevant: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def of(self, query: str) -> frozenset[str] | None:
        """Return the ids that are relevant for a query; None where it was not judged."""
        return self.relevant.get(normalise(query))

    def within(self, documents: Documents) -> Judged:
        """Return the judgments of these documents alone."""
        known = {documents[row].id for row in range(len(documents))}
        relevant = {query: ids & known for query, ids in self.relevant.items() if ids & known}
        return Judged(tuple(text for text in self.texts if normalise(text) in relevant), relevant)


def read_judged(split: Path, *, threshold: float | None = None) -> Judged:
    """Read the test side of a folder that `nestling split` wrote; a document is relevant above the threshold.

    Raises:
        InputError: the folder is no split, polars is missing, or the scale needs a threshold.
    """
    needed("--split", "polars")
    from nestling.judgments.split_files import read_split
    from nestling.judgments.threshold import settle_threshold

    test = read_split(split).test
    above = test.frame["score"] > settle_threshold(test, threshold)
    texts: dict[str, str] = {}
    relevant: dict[str, set[str]] = {}
    for query, document in test.frame.filter(above).select("query", "document_id").iter_rows():
        texts.setdefault(normalise(query), query)
        relevant.setdefault(normalise(query), set()).add(document)
    return Judged(tuple(texts.values()), {query: frozenset(ids) for query, ids in relevant.items()})
