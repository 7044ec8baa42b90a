"""Mix a trained model with the weights that its training began from."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer

from nestling.config.training import MergeBase
from nestling.models.load import load_model
from nestling.training.steps.context import Context, StepResult
from nestling.training.steps.guard import Guard


def merge_base(step: MergeBase, context: Context) -> StepResult:
    """Move a model's weights towards those that its training began from, where dev is not lower for it."""

    def make(guard: Guard) -> SentenceTransformer | None:
        merged = mixed(context.model, context.start, step.share)
        figures = context.evaluator.per_query(merged), context.figures()
        return (
            None if guard.keep(f"{step.share:.0%} of the base's weights", figures[:1], figures[1]) is None else merged
        )

    return context.finish(make)


def mixed(folder: Path, start: Path, share: float) -> SentenceTransformer:
    """Return a saved model with its weights moved towards those that its training began from, by a share above 0.

    WiSE-FT (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903).
    """
    before = load_model(str(start))
    if share == 1:
        return before
    model, weights = load_model(str(folder)), before.state_dict()
    model.load_state_dict(
        {
            name: value.lerp(weights[name].to(value), share) if value.is_floating_point() else value
            for name, value in model.state_dict().items()
        }
    )
    return model
