"""Training as a function, on the tiny model, and what it reads and leaves for the other stages."""

from __future__ import annotations

from pathlib import Path

import pytest

import nestling
from nestling.config.experiment import EvaluationSettings
from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.judgments.toolshed import generate


def test_split_train_and_evaluate_as_functions(tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A rotation shall only be made here, not be good.
    monkeypatch.setattr("nestling.retrieval.trained_rotation.STEPS", 10)
    split = nestling.split(generate(300, seed=0), out=tmp_path / "split")
    settings = TrainingSettings(epochs=1, batch_size=16, precision="fp32")
    tiny = str(tiny_model_path)
    result = nestling.train(tmp_path / "split", out=tmp_path / "mine", base=tiny, settings=settings)
    # The default recipe: pairs from the middle of the scale upwards, and a query made of each document.
    assert result.examples == len(split.train.above(1.99)) + split.train.document_keys.n_unique()
    models = {"base": tiny, "mine": str(tmp_path / "mine")}
    only = EvaluationSettings(dims=(32, 8), baselines=(), fusion=False)
    found = nestling.evaluate(tmp_path / "split", models, settings=only)
    assert found.results.select("variant", "dim").unique().sort("variant", "dim").rows() == [
        ("base", 8),
        ("base", 32),
        ("mine", 8),
        ("mine", 32),
    ]
    assert 0 < found.ceiling <= 1


def test_a_model_folder_that_exists_is_not_replaced(tiny_model_path: Path, tmp_path: Path):
    split = nestling.split(generate(300, seed=0))
    with pytest.raises(InputError, match="exists; give another folder"):
        nestling.train(split, out=tmp_path, base=str(tiny_model_path))
