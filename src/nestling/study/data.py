"""Load the judgments that settings name, inspect them, and split them."""

from __future__ import annotations

import logging
from pathlib import Path

from nestling.config.experiment import DataSettings, SplitSettings
from nestling.config.fingerprint import fingerprint
from nestling.config.names import DEFAULT_MODEL
from nestling.judgments.inspection import Inspection, inspect_judgments
from nestling.judgments.sources import load_judgments
from nestling.judgments.split import Split, split_judgments
from nestling.judgments.split_files import write_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import STUDY_SCALE, STUDY_THRESHOLD, dip
from nestling.models.load import ModelSource, find_model, token_counter

logger = logging.getLogger(__name__)


def load(data: Judgments | DataSettings | str, *, seed: int) -> Judgments:
    """Load judgments by their settings or source, and take a random sample of them where settings ask for one."""
    if isinstance(data, Judgments):
        return data
    settings = DataSettings(source=data) if isinstance(data, str) else data
    others = settings.model_dump(exclude={"source", "hub_split", "threshold"})
    judgments = load_judgments(settings.source, split=settings.hub_split, seed=seed, **others)
    if settings.records in (None, len(judgments)):
        return judgments
    return judgments.sample(settings.records, seed=seed)


def inspect(
    data: Judgments | DataSettings | str,
    *,
    model: str | ModelSource = DEFAULT_MODEL,
    threshold: float | None = None,
    seed: int = 0,
) -> Inspection:
    """Count what a table of judgments holds; the model's tokenizer counts text lengths, prompts included.

    The threshold is by default 2.5 on a scale of 1 to 3, else where the scores dip, else the middle of the scale.
    """
    judgments = load(data, seed=seed)
    if threshold is None:
        study = judgments.scale == STUDY_SCALE
        threshold = STUDY_THRESHOLD if study else dip(judgments.frame["score"].to_numpy(), judgments.scale)
    if threshold is None:
        threshold = sum(judgments.scale) / 2
    count, limit = token_counter(find_model(model) if isinstance(model, str) else model)
    return inspect_judgments(judgments, threshold=threshold, count_tokens=count, max_tokens=limit)


def split(
    data: Judgments | DataSettings | str, *, out: Path | str | None = None, settings: SplitSettings | None = None
) -> Split:
    """Split judgments into train, dev and test that share no query, and but for `queries-only` no document.

    The data are a table, its settings, or just its source; with `out` the split is written into that folder.
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
