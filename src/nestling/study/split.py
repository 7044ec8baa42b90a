"""Split judgments into train, dev and test."""

from __future__ import annotations

import logging
from pathlib import Path

from nestling.config.experiment import DataSettings, SplitSettings
from nestling.config.fingerprint import fingerprint
from nestling.judgments.split import Split, split_judgments
from nestling.judgments.split_files import write_split
from nestling.judgments.table import Judgments
from nestling.study.data import load

logger = logging.getLogger(__name__)


def split(
    data: Judgments | DataSettings | str, *, out: Path | str | None = None, settings: SplitSettings | None = None
) -> Split:
    """Split judgments into train, dev and test that share no query, and but for `queries-only` no document.

    Args:
        data: the table, its settings, or just its source.
        out: a folder to write the split into.
    """
    settings = settings or SplitSettings()
    judgments = load(data, seed=settings.seed)
    sides = split_judgments(judgments, **settings.model_dump())
    if sides.warning:
        logger.warning("%s: %s", judgments.source, sides.warning)
    leaks = sides.leaks()
    if leaks:  # pragma: no cover - the algorithm rules it out; a check, since every figure rests on it
        raise AssertionError(f"the split leaks: {leaks[0]}")
    if out is not None:
        write_split(sides, Path(out))
    return sides


def split_print(judgments: Judgments, settings: SplitSettings) -> str:
    """Return the fingerprint of what a split is made from, by which a run's folder knows its own."""
    return fingerprint([judgments.fingerprint, settings.model_dump(mode="json")])
