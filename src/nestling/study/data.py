"""Load the judgments that settings name, and inspect them."""

from __future__ import annotations

from nestling.config.experiment import DataSettings
from nestling.config.names import DEFAULT_MODEL
from nestling.judgments.inspection import Inspection, inspect_judgments
from nestling.judgments.sources import load_judgments
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import STUDY_SCALE, STUDY_THRESHOLD, dip
from nestling.models.load import ModelSource, find_model, token_counter


def load(data: Judgments | DataSettings | str, *, seed: int) -> Judgments:
    """Load judgments by their settings or source, and take a random sample of them where settings ask for one.

    Raises:
        InputError: they cannot be had, or hold fewer records than asked for.
    """
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
    """Count what a table of judgments holds.

    Args:
        data: the table, its settings, or just its source.
        model: whose tokenizer counts text lengths, prompts included.
        threshold: by default 2.5 on a scale of 1 to 3, else where the scores dip, else the middle of the scale.
    """
    judgments = load(data, seed=seed)
    if threshold is None and judgments.scale == STUDY_SCALE:
        threshold = STUDY_THRESHOLD
    if threshold is None:
        threshold = dip(judgments.frame["score"].to_numpy(), judgments.scale)
    if threshold is None:
        threshold = sum(judgments.scale) / 2
    count, limit = token_counter(find_model(model) if isinstance(model, str) else model)
    return inspect_judgments(judgments, threshold=threshold, count_tokens=count, max_tokens=limit)
