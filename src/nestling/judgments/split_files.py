"""A Split as files: three Parquet tables and a summary that a person can read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from nestling import atomic
from nestling.errors import InputError
from nestling.judgments.split import SIDES, Split
from nestling.judgments.table import Cleaning, Judgments

SUMMARY = "summary.json"
COUNTS = ("records", "dropped", "components", "largest_component")


def write_split(split: Split, folder: Path) -> None:
    """Write `train.parquet`, `dev.parquet`, `test.parquet` and `summary.json`, all or none."""
    with atomic.new_folder(folder) as temporary:
        for name, side in split.sides.items():
            side.frame.write_parquet(temporary / f"{name}.parquet")
        atomic.write_json(temporary / SUMMARY, summarise(split))


def summarise(split: Split) -> dict[str, Any]:
    """Return what a person wants to know of a split: method, shares, sizes, what was dropped, where it came from."""
    judgments = split.train
    return {
        "source": judgments.source,
        "encoding": judgments.encoding,
        "scale": list(judgments.scale),
        "cleaning": asdict(judgments.cleaning),
        "notes": list(judgments.notes),
        **{name: getattr(split, name) for name in ("method", "promise", "warning", "seen", "reason", "seed")},
        "asked": dict(zip(SIDES, split.shares, strict=True)),
        "reached": {name: len(side) / split.records for name, side in split.sides.items()},
        **{name: getattr(split, name) for name in COUNTS},
        "sides": {
            name: {
                "records": len(side),
                "queries": side.query_keys.n_unique(),
                "documents": side.frame["document_id"].n_unique(),
                "fingerprint": side.fingerprint,
            }
            for name, side in split.sides.items()
        },
    }


def read_split(folder: Path) -> Split:
    """Read what `write_split` wrote; refuse tables that are not the ones that the summary describes."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        frames = {name: pl.read_parquet(folder / f"{name}.parquet") for name in SIDES}
        scale = (float(summary["scale"][0]), float(summary["scale"][1]))
        about = (scale, summary["source"], Cleaning(**summary["cleaning"]), summary["encoding"])
        sides = {name: Judgments(frame, *about, tuple(summary.get("notes", ()))) for name, frame in frames.items()}
        for name, side in sides.items():
            if side.fingerprint != summary["sides"][name]["fingerprint"]:
                raise InputError(f"{folder / name}.parquet is not the table that {SUMMARY} describes; split again")
        known: dict[str, Any] = {name: summary[name] for name in ("method", "reason", "seed", *COUNTS)}
        known["shares"] = tuple(summary["asked"][name] for name in SIDES)
        return Split(**{**sides, **known})
    except FileNotFoundError as error:
        what = f"it has no {Path(error.filename).name}"
        raise InputError(f"{folder} is no split: {what}; make one with nestling split") from None
    except (json.JSONDecodeError, pl.exceptions.PolarsError, KeyError, TypeError) as error:
        raise InputError(f"{folder} cannot be read as a split ({type(error).__name__}: {error}); split again") from None
