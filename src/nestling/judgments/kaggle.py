"""The files of Kaggle's "Home Depot Product Search Relevance" as one table: pairs, descriptions and attributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import polars as pl

from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError
from nestling.judgments import files
from nestling.judgments.columns import Raw, listed

PAIRS = ("product_uid", "product_title", "search_term", "relevance")
FURTHER = {
    "product_descriptions.csv": ("product_uid", "product_description"),
    "attributes.csv": ("product_uid", "name", "value"),
}
SCALE = (1.0, 3.0)
ALIASES = {"title": "product_title", "description": "product_description"}
ABSENT = {  # the columns that only the further files bring, and what to do where they are missing
    "product_description": "put product_descriptions.csv beside train.csv",
    "attributes": "put attributes.csv beside train.csv",
    "brand": "put attributes.csv beside train.csv",
}
BRAND = "MFG Brand Name"

_HEAD = 2_000
_Entries = dict[str, Callable[[], bytes]]


def load(path: Path, source: str, max_unpacked: int = MAX_UNPACKED) -> Raw | None:
    """Return the records of a folder, zip or `train.csv` in the layout of the competition; None if it is no such thing.

    `train.csv` may be packed as .zip or .gz, and so may `product_descriptions.csv` and `attributes.csv`, which are
    joined where they lie beside it or in the same archive: `product_description`, `brand` and `attributes` ("name:
    value; name: value"), empty for a product that has none.
    """
    entries = _entries(path, source, max_unpacked)
    train = _find(entries, "train.csv")
    if train is None:
        return None
    name, data = files.unpack(*train, source, max_unpacked=max_unpacked)
    if not all(column.encode() in data[:_HEAD] for column in PAIRS):
        return None
    pairs = files.parse(name, data, source)
    if not set(PAIRS) <= set(pairs.frame.columns):
        return None
    frame = pairs.frame
    for name, columns in FURTHER.items():
        further = _find(entries, name)
        if further is None:
            continue
        where = f"{source}, {further[0]}"
        products = files.parse(*further, where, max_unpacked=max_unpacked).frame
        for column in columns:
            if column not in products.columns:
                what = f"no column {column!r}; it has {listed(products.columns)}"
                raise InputError(f"{where}: {what}; put the competition's own file there")
        products = _attributes(products) if name == "attributes.csv" else products.select(columns)
        products = products.unique("product_uid", keep="first", maintain_order=True)
        frame = frame.drop(set(products.columns) & set(frame.columns) - {"product_uid"})
        frame = frame.join(products, on="product_uid", how="left", maintain_order="left")
        frame = frame.with_columns(pl.col(name).fill_null("") for name in products.columns)
    return replace(pairs, frame=frame, scale=SCALE, aliases=ALIASES, absent=ABSENT)


def _attributes(frame: pl.DataFrame) -> pl.DataFrame:
    """Return `product_uid`, `brand` and `attributes`, one row a product, from one row an attribute."""
    frame = frame.filter((pl.col("product_uid") != "") & (pl.col("name") != ""))
    return frame.group_by("product_uid", maintain_order=True).agg(
        pl.col("value").filter(pl.col("name") == BRAND).first().alias("brand"),
        (pl.col("name") + ": " + pl.col("value")).str.join("; ").alias("attributes"),
    )


def _find(entries: _Entries, name: str) -> tuple[str, bytes] | None:
    return next(((n, entries[n]()) for n in (name, f"{name}.zip", f"{name}.gz") if n in entries), None)


def _entries(path: Path, source: str, max_unpacked: int) -> _Entries:
    """Return the files that may belong to the layout, by name: a folder's, or those in an archive and beside it."""
    if path.is_dir():
        return _folder(path, source)
    beside = {name: read for name, read in _folder(path.parent, source).items() if not name.startswith("train.csv")}
    if path.name in ("train.csv", "train.csv.gz"):
        return {**beside, path.name: partial(files.read_bytes, path, source)}
    if path.suffix.lower() == ".zip":
        inside = files.members(files.read_bytes(path, source), source, max_unpacked=max_unpacked)
        return {**beside, **{PurePosixPath(name).name: read for name, read in inside.items()}}
    return {}


def _folder(folder: Path, source: str) -> _Entries:
    try:
        return {path.name: partial(files.read_bytes, path, source) for path in folder.iterdir()}
    except PermissionError:
        raise InputError(f"{source}: permission denied; make the folder readable for this user") from None
    except OSError:
        return {}
