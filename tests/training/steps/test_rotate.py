"""The rotation after a training: the same cosines at full size, better prefixes, for the sizes of the spec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fixtures.training import Trained, begin, trained_with_notes
from nestling.judgments.split import Split
from nestling.judgments.toolshed import generate
from nestling.models.load import load_model
from nestling.retrieval.trained_rotation import train_search_rotation
from nestling.training.inputs.starts import texts

DOCUMENTS = texts(generate(300, seed=0))[1]


@pytest.mark.usefixtures("kept")
def test_a_rotated_training_has_the_same_figures_at_full_size_and_other_prefixes(
    split: Split, tiny_model_path: Path, plain: Trained, tmp_path: Path
):
    result, _ = trained_with_notes(split, tiny_model_path, begin(plain, tmp_path), rotate=True)
    assert result.after == pytest.approx(plain[0].after, abs=1e-6)
    one, other = (load_model(str(folder / "model")).encode(DOCUMENTS[:20]) for folder in (plain[2], tmp_path))
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-5)
    kept = [float((vectors[:, :8] ** 2).sum()) for vectors in (one, other)]
    assert kept[1] > kept[0]


@pytest.mark.usefixtures("kept")
def test_the_prefixes_of_the_spec_are_what_the_rotation_is_trained_for(
    split: Split, tiny_model_path: Path, plain: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dims = []

    def noting(*rows: np.ndarray, **options: object) -> np.ndarray:
        dims.append(options["dims"])
        return train_search_rotation(*rows, **options)  # type: ignore[arg-type]

    for step in ("rotate", "concat_static"):
        monkeypatch.setattr(f"nestling.training.steps.{step}.train_search_rotation", noting)
    trained_with_notes(split, tiny_model_path, begin(plain, tmp_path), rotate=True, concat_static=True)
    assert dims == [(32, 16, 8, 4)] * 2
