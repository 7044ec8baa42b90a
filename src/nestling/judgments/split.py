"""Train, dev and test with no query and no document in common, by id and by normalised text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nestling.errors import InputError
from nestling.judgments.table import Judgments

SIDES = ("train", "dev", "test")
Method = Literal["auto", "components", "queries"]

LARGEST_COMPONENT = 0.1
"""`auto` splits by components while the largest of them holds at most this share of the records."""


@dataclass(frozen=True)
class Split:
    """Three tables that share nothing, and how they were made.

    Attributes:
        train, dev, test: the sides. Train is for fitting, dev for checkpoints and tuning, test for the final table.
        method: `components` or `queries`, the one that was used.
        reason: why this method, in words.
        seed: what the random assignment came from.
        asked: share of the records asked for each side, in the order train, dev, test.
        records: how many records were split, dropped ones included.
        dropped: records left out because query and document fell to different sides.
        components: number of connected components of the query-document graph.
        largest_component: records of the largest component.
    """

    train: Judgments
    dev: Judgments
    test: Judgments
    method: str
    reason: str
    seed: int
    asked: tuple[float, float, float]
    records: int
    dropped: int
    components: int
    largest_component: int

    @property
    def sides(self) -> dict[str, Judgments]:
        """The three tables by name."""
        return {"train": self.train, "dev": self.dev, "test": self.test}

    @property
    def reached(self) -> dict[str, float]:
        """Share of all records that each side holds; what is missing to 1 was dropped."""
        return {name: len(side) / self.records for name, side in self.sides.items()}

    def leaks(self) -> list[str]:
        """Return what any two sides share, a line each; an empty list is the proof that nothing leaks."""
        found = []
        for i, a in enumerate(SIDES):
            for b in SIDES[i + 1 :]:
                left, right = self.sides[a], self.sides[b]
                for what, x, y in (
                    ("query ids", left.frame["query_id"], right.frame["query_id"]),
                    ("query texts", left.query_keys, right.query_keys),
                    ("document ids", left.frame["document_id"], right.frame["document_id"]),
                    ("document texts", left.document_keys, right.document_keys),
                ):
                    shared = set(x) & set(y)
                    if shared:
                        found.append(f"{a} and {b} share {len(shared)} {what}, {min(shared)!r} among them")
        return found


def split_judgments(
    judgments: Judgments,
    *,
    test: float = 0.2,
    dev: float = 0.1,
    method: Method = "auto",
    seed: int = 0,
) -> Split:
    """Split so that no query and no document (by id or by normalised text) is on two sides.

    Two methods:

    - `components`: queries and documents are the nodes of a graph, records its edges; whole connected components are
      dealt to the sides in random order. Nothing is dropped, but a component that holds much of the data cannot be
      dealt.
    - `queries`: queries are dealt at random; a document that several sides judge goes to test, else to dev, and the
      other sides' records of it are dropped. Test queries so keep all their judgments.

    `auto` takes components while the largest holds at most a tenth of the records. The result depends on the seed and
    on the records, never on their order.

    Args:
        test, dev: share of the records for these sides; the rest is train.

    Raises:
        InputError: the shares leave nothing for a side, or the data cannot be split so that each side has records.
    """
    if not (0 < test < 1 and 0 <= dev < 1 and test + dev < 1):
        raise InputError(f"split shares test {test:g} and dev {dev:g} must be above 0 and leave something for train")
    if method not in ("auto", "components", "queries"):
        raise InputError(f"unknown split method {method!r}; choose auto, components or queries")
    queries = _groups(judgments.frame["query_id"], judgments.query_keys)
    documents = _groups(judgments.frame["document_id"], judgments.document_keys)
    if queries.max(initial=-1) < 1:
        raise InputError(f"{judgments.source}: cannot be split: it has one query only, and sides may share none")

    components = _components(queries, documents)
    sizes = np.bincount(components)
    largest = int(sizes.max())
    chosen, reason = _choose(method, largest, len(judgments))
    rng = np.random.default_rng(seed)
    targets = {"test": test * len(judgments), "dev": dev * len(judgments)}
    if chosen == "components":
        sides = _deal(sizes, targets, rng)[components]
    else:
        wanted = _deal(np.bincount(queries), targets, rng)[queries]
        # The largest number that judges a document has it: test is 2, dev 1, train 0.
        owner = np.zeros(documents.max() + 1, dtype=np.int64)
        np.maximum.at(owner, documents, wanted)
        sides = np.where(owner[documents] == wanted, wanted, -1)
    tables = {name: judgments.take(np.flatnonzero(sides == number)) for number, name in enumerate(SIDES)}
    empty = [name for name, table in tables.items() if not len(table) and not (name == "dev" and dev == 0)]
    if empty:
        raise InputError(
            f"{judgments.source}: cannot be split by {chosen}: nothing is left for {empty[0]} "
            f"({len(sizes)} components, the largest with {largest} of {len(judgments)} records); "
            f"{'try --method queries, or ' if chosen == 'components' else ''}give more data or other shares"
        )
    return Split(
        tables["train"],
        tables["dev"],
        tables["test"],
        method=chosen,
        reason=reason,
        seed=seed,
        asked=(1 - test - dev, dev, test),
        records=len(judgments),
        dropped=int((sides == -1).sum()),
        components=len(sizes),
        largest_component=largest,
    )


def _choose(method: str, largest: int, records: int) -> tuple[str, str]:
    share = f"the largest component holds {largest:,} of {records:,} records ({largest / records:.1%})"
    if method != "auto":
        return method, f"as asked; {share}"
    if largest <= LARGEST_COMPONENT * records:
        return "components", f"{share}, few enough to deal whole components"
    return "queries", f"{share}, too many to put on one side"


def _groups(ids: pl.Series, keys: pl.Series) -> np.ndarray:
    """Number the entities of a column: (n_records,) int64, equal where the id or the normalised text is."""
    by_id = _codes(ids)
    by_key = _codes(keys)
    n_ids = int(by_id.max(initial=-1)) + 1
    numbers: np.ndarray = _connect(by_id, by_key + n_ids)[by_id]
    return numbers


def _components(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    n_queries = int(queries.max()) + 1
    numbers: np.ndarray = _connect(queries, documents + n_queries)[queries]
    return numbers


def _connect(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    size = int(right.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(size, size))
    labels: np.ndarray = connected_components(edges, directed=False)[1]
    return labels.astype(np.int64)


def _codes(values: pl.Series) -> np.ndarray:
    """Number distinct values in sorted order, so that the numbers do not depend on the order of the rows."""
    return (values.rank("dense").cast(pl.Int64) - 1).to_numpy()


def _deal(sizes: np.ndarray, targets: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Assign groups of `sizes` records to sides in random order: test to its target, then dev, the rest to train."""
    sides = np.zeros(len(sizes), dtype=np.int64)
    order = rng.permutation(len(sizes))
    filled = {"test": 0.0, "dev": 0.0}
    for group in order:
        for name in ("test", "dev"):
            target, size = targets[name], sizes[group]
            # Half of a group may overshoot, as half may fall short, so that shares are met on average.
            if filled[name] + size / 2 <= target:
                sides[group] = SIDES.index(name)
                filled[name] += size
                break
    return sides
