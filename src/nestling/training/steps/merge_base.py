"""Mix a trained model with the weights that its training began from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nestling.config.training import MergeBase
from nestling.models.load import load_model
from nestling.training.steps.context import Context, StepResult
from nestling.training.steps.guard import Guard

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def merge_base(step: MergeBase, context: Context) -> StepResult:
    """Move a model's weights towards those that its training began from, where dev is not lower for it."""

    def make(guard: Guard) -> SentenceTransformer | None:
        merged = mixed(context.model, context.start, step.share)
        with_it, without = (context.evaluator.per_query(each) for each in (merged, load_model(str(context.model))))
        kept = guard.keep(f"{step.share:.0%} of the base's weights", [with_it], without) is not None
        return merged if kept else None

    return context.finish(make)


def mixed(folder: Path, start: Path, share: float) -> SentenceTransformer:
    """Return a saved model with its weights moved towards those that its training began from.

    WiSE-FT (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903).

    Args:
        start: a model of the same layers.
        share: of its weights, 0 to 1.
    """
    if share == 1:
        return load_model(str(start))
    model = load_model(str(folder))
    if share:
        before = load_model(str(start)).state_dict()
        model.load_state_dict(
            {
                name: value.lerp(before[name].to(value), share) if value.is_floating_point() else value
                for name, value in model.state_dict().items()
            }
        )
    return model
