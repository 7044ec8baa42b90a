"""Base weights mixed into a trained model's: each weight, and a layer that the training began with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.modules import Dense

from fixtures.training import Trained, begin, trained_with_notes
from nestling.judgments.split import Split
from nestling.models.load import load_model
from nestling.retrieval.rotation import add_rotation
from nestling.training.steps.merge_base import mixed


@pytest.mark.usefixtures("kept")
def test_a_share_of_the_base_is_mixed_in(split: Split, tiny_model_path: Path, plain: Trained, tmp_path: Path):
    trained_with_notes(split, tiny_model_path, begin(plain, tmp_path), merge_base={"share": 0.25})
    base, alone, mixed = (
        load_model(str(path)).state_dict() for path in (tiny_model_path, plain[2] / "model", tmp_path / "model")
    )
    assert alone.keys() == mixed.keys()
    for name, value in mixed.items():
        np.testing.assert_allclose(value, 0.75 * alone[name] + 0.25 * base[name], atol=1e-6, err_msg=name)
    assert any(not np.array_equal(alone[name], mixed[name]) for name in alone)


def test_a_layer_that_the_training_began_with_is_mixed_as_the_rest_is(tiny_model_path: Path, tmp_path: Path):
    layers = []
    for name, sign in (("start", 1), ("model", -1)):
        model = load_model(str(tiny_model_path))
        layer = add_rotation(model, sign * np.eye(32, dtype=np.float32)[::-1].copy())
        model.save_pretrained(str(tmp_path / name))
        layers.append(layer.linear.weight.detach().numpy().copy())
    found = [module for module in mixed(tmp_path / "model", tmp_path / "start", 0.75) if type(module) is Dense]
    assert len(found) == 1
    np.testing.assert_allclose(found[0].linear.weight.detach().numpy(), 0.75 * layers[0] + 0.25 * layers[1], atol=1e-6)
