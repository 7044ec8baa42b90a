"""Toolshed, the embedded data set: a generated hardware catalogue with queries and the scores of simulated raters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import polars as pl

from nestling.errors import InputError
from nestling.judgments.identity import normalise
from nestling.judgments.table import Judgments
from nestling.judgments.toolshed_products import ATTRIBUTES, Dice, Product, Vocabulary, make_product
from nestling.judgments.toolshed_queries import phrase, wishes_of

MINIMUM_RECORDS = 50
SCALE = (1.0, 3.0)
# The catalogue grows with the records: shelves of similar products that are judged among themselves, so that the table
# falls into many small parts without a shared product, and a split loses nothing.
RECORDS_A_SHELF = 48
RECORDS_A_TYPE = 110
SHELF_MAIN, SHELF_OTHER_KIND, SHELF_RELATED = 12, 2, 2
# A query's wishes grow until at most this many products of other shelves would also meet them all, unjudged.
UNJUDGED = 1
FULL_MATCHES = 4
MAX_WISHES = 5
TRIES = 40
# What the raters make of it: the mean score of a product that meets all wishes, and what each miss takes from it.
ALL_MET, MISS, LEAST, RATER_NOISE = 3.0, 0.92, 1.1, 0.8
FIELDS = ("brand", "product_type", "size", "material", "colour", "finish", "power", "pack")

_Row = tuple[str | float, ...]


class _Shelf(NamedTuple):
    main: list[Product]
    all: list[Product]


def generate(records: int = 25_000, *, seed: int = 0) -> Judgments:
    """Return the judgments of a generated catalogue: the same bytes for the same arguments on every machine.

    The document of a record is the product's title; the longer description and the attributes are document fields.
    """
    if records < MINIMUM_RECORDS:
        raise InputError(f"toolshed: {records} records are too few; give --records {MINIMUM_RECORDS} or more")
    dice, words = Dice(seed), Vocabulary.load()
    shelves = _stock(dice, words, records)
    by_type: dict[str, list[Product]] = {}
    for shelf in shelves:
        for product in shelf.all:
            by_type.setdefault(product.type, []).append(product)
    queries: set[str] = set()
    rows: list[_Row] = []
    while len(rows) < records:
        # One query a shelf and round, so that all shelves have their share wherever the records end.
        for shelf in shelves:
            rows += _query_rows(dice, words, shelf, by_type, queries)
    columns = ("query", "document", "document_id", "score", "title", "description", *FIELDS)
    schema = dict.fromkeys(columns, pl.String) | {"score": pl.Float64}
    frame = pl.DataFrame(rows[:records], schema=schema, orient="row")
    return Judgments.from_frame(frame, scale=SCALE, source=f"toolshed (generated, {records} records, seed {seed})")


def _stock(dice: Dice, words: Vocabulary, records: int) -> list[_Shelf]:
    types = dice.sample(list(words.types), max(8, records // RECORDS_A_TYPE))
    titles: set[str] = set()
    shelves: list[_Shelf] = []
    for i in range(max(2, records // RECORDS_A_SHELF)):
        name = types[i % len(types)]
        kinds, related = list(words.types[name]["kind"]), words.types[name]["with"]
        # Each next shelf of a type shows its next kind.
        kind = kinds[i // len(types) % len(kinds)]
        own = _spread(dice, words, name)
        plans = [(name, kind)] * SHELF_MAIN
        plans += [(name, other) for other in dice.sample([k for k in kinds if k != kind], SHELF_OTHER_KIND)]
        plans += [(related, dice.pick(list(words.types[related]["kind"]))) for _ in range(SHELF_RELATED)]
        spreads = {related: _spread(dice, words, related), name: own}
        drawn = [_product(dice, words, plan, spreads[plan[0]], titles) for plan in plans]
        products = [product for product in drawn if product is not None]
        main = [product for product in products if product.type == name and product.has["kind"] == kind]
        shelves.append(_Shelf(main, products))
    return shelves


def _spread(dice: Dice, words: Vocabulary, type_name: str) -> dict[str, list[str]]:
    """Return the few values of each attribute that a shelf shows, so that its products are similar."""
    entry = words.types[type_name]
    spread = {"brand": dice.sample(words.texts["brands"][entry["dept"]], 2)}
    spread["feature"] = ["", *dice.sample(list(words.texts["features"]), 2)]
    for name in ("power", "size", "material", "colour", "finish"):
        if name in entry:
            spread[name] = dice.sample(words.options[name][entry[name]], 3 if name == "size" else 2)
    if "pack" in entry:
        spread["pack"] = ["", *dice.sample(words.options["pack"][entry["pack"]], 2)]
    return spread


def _product(
    dice: Dice, words: Vocabulary, plan: tuple[str, str], spread: dict[str, list[str]], titles: set[str]
) -> Product | None:
    """Return a product of a type and kind whose title is new, and keep the title; None where chance finds none."""
    type_name, kind = plan
    for _ in range(TRIES):
        drawn = {name: dice.pick(values) for name, values in spread.items()} | {"kind": kind}
        has = {name: drawn[name] for name in ATTRIBUTES if drawn.get(name)}
        product = make_product(dice, words, len(titles), type_name, has)
        key = normalise(product.title)
        # A title stands for one product: texts shared by two would tie shelves together.
        if key not in titles:
            titles.add(key)
            return product
    return None


def _query_rows(
    dice: Dice, words: Vocabulary, shelf: _Shelf, by_type: dict[str, list[Product]], queries: set[str]
) -> Iterator[_Row]:
    """Give the records of a query that is not among `queries` yet; none where chance finds none."""
    for _ in range(TRIES):
        target = dice.pick(shelf.main)
        wishes = _narrowed(dice, target, shelf, by_type[target.type])
        query = phrase(dice, words, target, wishes)
        key = normalise(query)
        if key not in queries:
            queries.add(key)
            break
    else:
        return
    for product in _candidates(dice, target, wishes, shelf):
        quality = max(LEAST, ALL_MET - MISS * _misses(target, wishes, product))
        raters = [min(3, max(1, int(quality + RATER_NOISE * dice.noise() + 0.5))) for _ in range(3)]
        score = round(sum(raters) / 3, 2)
        fields = [product.type if name == "product_type" else product.has.get(name, "") for name in FIELDS]
        yield (query, product.title, product.id, score, product.title, product.description, *fields)


def _narrowed(dice: Dice, target: Product, shelf: _Shelf, same_type: Sequence[Product]) -> list[str]:
    """Return wishes that few products meet: first those that a shopper would name, then more while too many match."""
    order = wishes_of(dice, target)
    n = 1 + dice.below(3)
    while n < min(len(order), MAX_WISHES):
        inside = sum(_misses(target, order[:n], product) == 0 for product in shelf.all)
        anywhere = sum(_misses(target, order[:n], product) == 0 for product in same_type)
        if inside <= FULL_MATCHES and anywhere - inside <= UNJUDGED:
            break
        n += 1
    return order[:n]


def _misses(target: Product, wishes: Sequence[str], product: Product) -> int:
    """Return how many of the wishes the product fails; the type counts for more than all the others together."""
    if product.type != target.type:
        return len(ATTRIBUTES) + 1
    return sum(product.has.get(name) != target.has[name] for name in wishes)


def _candidates(dice: Dice, target: Product, wishes: Sequence[str], shelf: _Shelf) -> list[Product]:
    """Return what is judged for a query: all full matches, then near misses, then plainly wrong ones."""
    groups: list[list[Product]] = [[], [], []]
    for product in dice.sample(shelf.all, len(shelf.all)):
        groups[min(2, _misses(target, wishes, product))].append(product)
    full, near, wrong = groups
    n = max(len(full) + 2, 4 + dice.below(5))
    near = near[: max(1, n - len(full) - 1)]
    return full + near + wrong[: n - len(full) - len(near)]
