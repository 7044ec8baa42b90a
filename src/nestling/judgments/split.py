"""Train, dev and test with no query in common, and mostly no document, by id and by normalised text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import get_args

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nestling.config.names import SplitMethod
from nestling.errors import InputError
from nestling.judgments.table import Judgments

SIDES = ("train", "dev", "test")
METHODS: tuple[SplitMethod, ...] = get_args(SplitMethod)

LARGEST_COMPONENT = 0.1
"""`auto` splits by components while the largest of them holds at most this share of the records."""
MOST_DROPPED = 0.2
"""Else `auto` splits by queries, unless that drops more than this share of the records: then by queries only."""


@dataclass(frozen=True)
class Split:
    """Three tables that share no query, and unless the method is `queries-only` no document; and how they were made.

    Attributes:
        shares: share of the records requested for each side, in the order train, dev, test.
        records, dropped: how many were split, and how many of them left out as query and document fell to two sides.
        components, largest_component: of the query-document graph: their number, and records of the largest.
    """

    train: Judgments
    dev: Judgments
    test: Judgments
    method: str
    reason: str
    seed: int
    shares: tuple[float, float, float]
    records: int
    dropped: int
    components: int
    largest_component: int

    @property
    def sides(self) -> dict[str, Judgments]:
        """The three tables by name."""
        return {"train": self.train, "dev": self.dev, "test": self.test}

    @property
    def shares_documents(self) -> bool:
        """Whether sides may have documents in common."""
        return self.method == "queries-only"

    @property
    def promise(self) -> str:
        """The promise of the split, in words: what no two sides have in common."""
        return "sides share no query" + ("; they do share documents" if self.shares_documents else " and no document")

    @cached_property
    def seen(self) -> dict[str, int]:
        """Numbers of documents of dev and of test that are in train too, by id or by normalised text."""
        ids, keys = self.train.frame["document_id"].unique().implode(), self.train.document_keys.unique().implode()
        counts = {}
        for name in ("dev", "test"):
            side = self.sides[name]
            known = side.frame["document_id"].is_in(ids) | side.document_keys.is_in(keys)
            counts[name] = side.frame["document_id"].filter(known).n_unique()
        return counts

    @property
    def warning(self) -> str | None:
        """The warning for figures of a split that shares documents; None for the others."""
        if not self.shares_documents:
            return None
        return (
            f"WARNING: sides share documents, and train holds {self.seen['test']:,} of the "
            f"{self.test.frame['document_id'].n_unique():,} of test: the figures are of new queries on documents that "
            "training knows, and too good for new documents"
        )

    def overview(self) -> list[str]:
        """Return lines for a person: the method and why, sizes and what was dropped, and the warning if any."""
        sizes = ", ".join(f"{name} {len(side):,}" for name, side in self.sides.items())
        records = f"{sizes} records; {self.dropped:,} dropped to keep the sides apart; {self.promise}"
        return [f"by {self.method}: {self.reason}", records, *([self.warning] if self.warning else [])]

    def leaks(self) -> list[str]:
        """Return what two sides share against the promise, a line each; an empty list is the proof that none leaks."""
        kinds = ("query",) if self.shares_documents else ("query", "document")
        leaks = []
        for (a, one), (b, other) in combinations(self.sides.items(), 2):
            for kind in kinds:
                ids = set(one.frame[f"{kind}_id"]) & set(other.frame[f"{kind}_id"])
                texts = set(getattr(one, f"{kind}_keys")) & set(getattr(other, f"{kind}_keys"))
                for what, shared in (("ids", ids), ("texts", texts)):
                    if shared:
                        leaks.append(f"{a} and {b} share {len(shared)} {kind} {what}, {min(shared)!r} among them")
        return leaks


def split_judgments(
    judgments: Judgments,
    *,
    test: float = 0.2,
    dev: float = 0.1,
    method: SplitMethod = "auto",
    seed: int = 0,
) -> Split:
    """Split so that no query (by id or by normalised text) is on two sides, and no document if the method says so.

    - `components`: queries and documents are the nodes of a graph, records its edges; whole connected components are
      dealt to the sides in random order. Nothing is dropped.
    - `queries`: queries are dealt at random; a document that several sides judge goes to test, else to dev, and the
      other sides' records of it are dropped. Test queries so keep all their judgments.
    - `queries-only`: queries are dealt at random, with all their records; sides share documents. Nothing is dropped.
    - `auto`: components while the largest holds at most a tenth of the records, else queries while that drops at most
      a fifth of them, else queries only.

    `test` and `dev` are shares of the records. The result depends on the seed and on the records, never on their order.
    """
    if not (0 < test < 1 and 0 <= dev < 1 and test + dev < 1):
        raise InputError(f"split shares test {test:g} and dev {dev:g} must be above 0 and leave something for train")
    if method not in METHODS:
        raise InputError(f"unknown split method {method!r}; choose {', '.join(METHODS)}")
    queries = _connected(_codes(judgments.frame["query_id"]), _codes(judgments.query_keys))
    documents = _connected(_codes(judgments.frame["document_id"]), _codes(judgments.document_keys))
    if queries.max(initial=-1) < 1:
        raise InputError(f"{judgments.source}: cannot be split: it has one query only, and sides may share none")

    components = _connected(queries, documents)
    sizes = np.bincount(components)
    largest = int(sizes.max())
    targets = {"test": test * len(judgments), "dev": dev * len(judgments)}
    by_query = _deal(np.bincount(queries), targets, seed)[queries]
    # The largest number that judges a document has it: test is 2, dev 1, train 0.
    owner = np.zeros(documents.max() + 1, dtype=np.int64)
    np.maximum.at(owner, documents, by_query)
    owned = owner[documents] == by_query
    chosen, reason = _choose(method, largest, int((~owned).sum()), len(judgments))
    if chosen == "components":
        sides = _deal(sizes, targets, seed)[components]
    else:
        sides = np.where(owned | (chosen == "queries-only"), by_query, -1)
    tables = {name: judgments.take(np.flatnonzero(sides == number)) for number, name in enumerate(SIDES)}
    empty = [name for name, table in tables.items() if not len(table) and not (name == "dev" and dev == 0)]
    if empty:
        laxer = {"components": "try --method queries, or ", "queries": "try --method queries-only, or "}
        raise InputError(
            f"{judgments.source}: cannot be split by {chosen}: nothing is left for {empty[0]} "
            f"({len(sizes)} components, the largest with {largest} of {len(judgments)} records); "
            f"{laxer.get(chosen, '')}give more data or other shares"
        )
    return Split(
        **tables,
        method=chosen,
        reason=reason,
        seed=seed,
        shares=(1 - test - dev, dev, test),
        records=len(judgments),
        dropped=int((sides == -1).sum()),
        components=len(sizes),
        largest_component=largest,
    )


def _choose(method: str, largest: int, dropped: int, records: int) -> tuple[str, str]:
    """Return the method to use, and why."""
    share = f"the largest component holds {largest:,} of {records:,} records ({largest / records:.1%})"
    if method != "auto":
        return method, f"as asked; {share}"
    if largest <= LARGEST_COMPONENT * records:
        return "components", f"{share}, few enough to deal whole components"
    share += ", too many to put on one side"
    if dropped <= MOST_DROPPED * records:
        return "queries", share
    apart = f"keeping documents apart too would drop {dropped:,} records ({dropped / records:.1%})"
    return "queries-only", f"{share}; {apart}"


def _connected(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number the connected components of a graph from its edges, a record each: (n_records,) int64."""
    right = right + left.max(initial=-1) + 1
    size = int(right.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(size, size))
    return np.asarray(connected_components(edges, directed=False)[1][left], dtype=np.int64)


def _codes(values: pl.Series) -> np.ndarray:
    """Number distinct values in sorted order, so that the numbers do not depend on the order of the rows."""
    return (values.rank("dense").cast(pl.Int64) - 1).to_numpy()


def _deal(sizes: np.ndarray, targets: dict[str, float], seed: int) -> np.ndarray:
    """Assign groups of `sizes` records to sides in random order: test to its target, then dev, the rest to train."""
    sides = np.zeros(len(sizes), dtype=np.int64)
    filled = dict.fromkeys(targets, 0.0)
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        for name, target in targets.items():
            # Half of a group may overshoot, as half may fall short, so that shares are met on average.
            if filled[name] + sizes[group] / 2 <= target:
                sides[group] = SIDES.index(name)
                filled[name] += sizes[group]
                break
    return sides
