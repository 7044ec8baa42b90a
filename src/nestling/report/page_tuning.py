"""The search of settings and the learning curve on the page, where the run's folder holds them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from markupsafe import Markup

from nestling.config.run_folder import RunFolder
from nestling.report.render.html import inline
from nestling.training.result import MEAN, RECALL, worded

logger = logging.getLogger(__name__)


class Finding(NamedTuple):
    """The result of a search or a curve in a sentence, its pictures as (name, SVG), and the PNG files of them."""

    title: str
    text: str
    pictures: tuple[tuple[str, Markup], ...]
    files: tuple[Path, ...]


def findings(folder: RunFolder) -> list[Finding]:
    """Return the search's finding and the curve's, as far as `nestling tune` and `nestling curve` left them."""
    result = []
    for title, sentence, path, pictures in (
        ("Search of settings", _search, folder.tuning, ("trials", "importance")),
        ("Learning curve", _curve, folder.curve, ("curve",)),
    ):
        try:
            text = sentence(path)
            inlined = tuple(
                (name, inline((path / f"{name}.svg").read_text(encoding="utf-8"), name=f"{title}: {name}"))
                for name in pictures
                if (path / f"{name}.svg").is_file()
            )
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            # The study's page does not fail over a damaged side table.
            logger.warning("%s is left out of the page: %s", path, error)
            continue
        pngs = (path / f"{name}.png" for name in pictures)
        result.append(Finding(title, text, inlined, tuple(png for png in pngs if png.is_file())))
    return result


def _search(path: Path) -> str:
    trials = pl.read_parquet(path / "trials.parquet")
    complete = trials.filter(pl.col("state") == "complete")
    metric = RECALL + MEAN if RECALL + MEAN in trials.columns else RECALL
    best = complete.sort(metric, "trial", descending=[True, False]).row(0, named=True)
    # The first six columns are no settings.
    settings = ", ".join(f"{name} {_setting(best[name])}" for name in trials.columns[6:])
    pruned = len(trials) - len(complete)
    ended = f", {pruned:,} of them ended early" if pruned else ""
    return (
        f"{len(trials):,} trials{ended}. The best, trial {best['trial']}, has {worded(metric).removeprefix('dev ')} "
        f"{best[metric]:.4f} on dev with {settings}."
    )


def _curve(path: Path) -> str:
    curve = json.loads((path / "curve.json").read_text(encoding="utf-8"))
    return f"{curve['variant']} on growing shares of the training data. {curve['verdict']}"


def _setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "none" if value is None else str(value)
