"""The recipes: their names, and the training settings in which each differs from the general ones."""

from __future__ import annotations

from typing import Any

_GRADED: dict[str, Any] = {
    "epochs": 2,
    "hidden_dropout": 0.0,
    "crops": 1,
    "alike": True,
    "bm25": 0.5,
    "base_share": 0.2,
    "lexical": True,
    "rotate": True,
}

RECIPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "graded": _GRADED,
    "distilled": {**_GRADED, "cross_encoder": 2.0},
    "mnrl": {},
    "static": {
        "learning_rate": 0.005,
        "batch_size": 1024,
        "epochs": 3,
        "scale": 15.0,
        "crops": 1,
        "precision": "fp32",
    },
    "adapter": {"learning_rate": 0.001, "batch_size": 256, "epochs": 5, "scale": 20.0, "precision": "fp32"},
    "cosine": {},
    "cosent": {},
}
"""A variant's own settings stand above these, an experiment's for all variants below."""
