"""How small embeddings can get: the choice on dev, its proof on test, and the model that is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sentence_transformers import SentenceTransformer

import nestling
from nestling.cli.measure import _doubt
from nestling.config.experiment import EvaluationSettings
from nestling.errors import InputError
from nestling.evaluation.cell_search import Fitted
from nestling.evaluation.cells import Cell
from nestling.judgments.split import Split
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model
from nestling.study import shrink

SETTINGS = EvaluationSettings(
    dims=(32, 16, 8),
    precisions=("float32", "int8", "binary"),
    rotations=("none", "trained"),
    oversampling=(4,),
    fusion=False,
)
TEXTS = ["a hand saw", "cordless drill with two batteries", "white paint"]


@pytest.fixture(scope="module")
def split() -> Split:
    return nestling.split(generate(400, seed=0))


@pytest.fixture(scope="module")
def tiny(tiny_model_path: Path) -> str:
    return str(tiny_model_path)


@pytest.fixture(scope="module")
def found(split: Split, tiny: str) -> shrink.Shrunk:
    return nestling.shrink(tiny, split, keep=0.9, settings=SETTINGS)


def test_the_choice_is_the_cell_of_fewest_bytes_that_keeps_enough_on_dev(found: shrink.Shrunk):
    assert found.alone is not None
    assert found.alone.dev["kept"] >= 0.9
    enough = found.kept.filter(pl.col("kept") >= 0.9, pl.col("oversampling") == 0)
    assert found.alone.cell.bytes == enough["bytes"].min()
    full = found.kept.filter(pl.col("dim") == 32, pl.col("precision") == "float32")
    assert full["kept"].to_list() == [1.0]
    if found.rescored is not None:
        assert found.rescored.cell.oversampling
        assert found.rescored.cell.bytes < found.alone.cell.bytes


def test_the_stricter_choice_is_never_smaller(split: Split, tiny: str, found: shrink.Shrunk):
    loose = found.alone
    strict = nestling.shrink(tiny, split, keep=0.9, strict=True, settings=SETTINGS).alone
    assert loose is not None
    assert strict is not None
    assert strict.cell.bytes >= loose.cell.bytes
    assert strict.dev["kept_low"] >= 0.9


def test_the_choice_among_more_than_fifty_cells_is_strict_unless_asked_otherwise(
    split: Split, tiny: str, found: shrink.Shrunk
):
    many = SETTINGS.model_copy(update={"oversampling": (2, 4, 8)})
    strict, loose = (nestling.shrink(tiny, split, keep=0.9, strict=asked, settings=many) for asked in (None, False))
    assert len(found.kept) <= 50 < len(strict.kept)
    assert (found.strict, strict.strict, loose.strict) == (False, True, False)
    assert strict.alone is not None
    assert strict.alone.dev["kept_low"] >= 0.9
    enough = strict.kept.filter(pl.col("kept_low") >= 0.9, pl.col("oversampling") == 0)
    assert strict.alone.cell.bytes == enough["bytes"].min()


def test_the_rotation_is_trained_once_for_all_sizes_of_the_grid(
    split: Split, tiny: str, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def noting(queries: np.ndarray, documents: np.ndarray, *, dims: tuple[int, ...]) -> np.ndarray:
        asked.append(dims)
        return np.eye(queries.shape[1], dtype=np.float32)

    monkeypatch.setattr("nestling.evaluation.cell_search.train_search_rotation", noting)
    nestling.shrink(tiny, split, keep=0.9, settings=SETTINGS)
    assert asked == [(32, *(dim for dim in SETTINGS.dims if dim < 32))]


def test_test_figures_do_not_move_the_choice(split: Split, tiny: str, found: shrink.Shrunk):
    other = nestling.shrink(tiny, replace(split, test=split.dev), keep=0.9, settings=SETTINGS)
    assert found.alone is not None
    assert other.alone is not None
    assert found.alone.cell == other.alone.cell
    assert found.kept.equals(other.kept)


def test_with_bm25_quality_is_counted_of_the_fusion(split: Split, tiny: str, found: shrink.Shrunk):
    fused = nestling.shrink(tiny, split, keep=0.9, settings=SETTINGS, fuse=True)
    best = [each.kept.filter(pl.col("kept") == 1.0)["value"].max() for each in (found, fused)]
    assert best[1] >= best[0]


@pytest.mark.parametrize("rotation", ["none", "pca", "trained"])
def test_a_written_model_gives_the_cells_embeddings_in_plain_sentence_transformers(
    split: Split, tiny: str, tmp_path: Path, rotation: str
):
    cell = Cell(8, "int8", rotation)  # type: ignore[arg-type]
    model = SentenceTransformer(tiny)
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(32, 32)))[0].astype(np.float32)
    fitted = Fitted(lambda: pytest.fail("nothing is to be encoded"))
    fitted._rotations.update(pca=basis, trained=basis)

    shrink.write_shrunk(find_model(tiny), cell, fitted, tmp_path / "small", about={"oversampling": 0, "dim": 8})

    small = SentenceTransformer(str(tmp_path / "small"))
    found = small.encode(TEXTS, normalize_embeddings=True)
    expected = fitted.cut(cell, model.encode(TEXTS, normalize_embeddings=True))
    assert found.shape == (3, 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_model_for_rescoring_stays_whole_and_rotated(tiny: str, tmp_path: Path):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0].astype(np.float32)
    fitted = Fitted(lambda: pytest.fail("nothing is to be encoded"))
    fitted._rotations.update(pca=basis, trained=basis)
    about = {"oversampling": 4, "dim": 8}

    shrink.write_shrunk(find_model(tiny), Cell(8, "int8", "trained", 4), fitted, tmp_path / "small", about=about)

    whole = SentenceTransformer(str(tmp_path / "small")).encode(TEXTS)
    plain = SentenceTransformer(tiny).encode(TEXTS)
    np.testing.assert_allclose(whole @ whole.T, plain @ plain.T, atol=1e-4)
    model, codec, _ = nestling.load_shrunk(tmp_path / "small")
    assert model.encode(TEXTS).shape == (3, 8)
    assert codec.dim == 8


def test_what_is_written_says_what_it_keeps_and_is_loaded_with_its_codec(split: Split, tiny: str, tmp_path: Path):
    found = nestling.shrink(tiny, split, keep=0.9, settings=SETTINGS, out=tmp_path / "small")

    assert found.alone is not None
    about = json.loads((tmp_path / "small" / shrink.SHRUNK).read_text(encoding="utf-8"))
    assert about["bytes"] == found.alone.cell.bytes
    assert about["test"]["value"] == found.alone.test["value"]
    model, codec, read = nestling.load_shrunk(tmp_path / "small")
    assert read == about
    vectors = model.encode(TEXTS, normalize_embeddings=True)
    assert vectors.shape[1] == codec.dim == found.alone.cell.dim
    codes = codec.encode(vectors)
    assert codes.nbytes == 3 * found.alone.cell.bytes


def test_what_cannot_be_is_refused_in_one_line(split: Split, tiny: str, tmp_path: Path):
    with pytest.raises(InputError, match="keep must be above 0"):
        nestling.shrink(tiny, split, keep=1.5)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists"):
        nestling.shrink(tiny, split, out=tmp_path / "there")
    with pytest.raises(InputError, match="nestling_shrunk"):
        nestling.load_shrunk(tiny)


@pytest.mark.parametrize(("strict", "advice"), [(False, "--strict chooses"), (True, "a higher --keep leaves")])
@pytest.mark.parametrize(("kept", "lines"), [(0.985, 0), (0.98, 0), (0.971, 1)])
def test_a_choice_that_test_does_not_bear_out_is_doubted(kept: float, lines: int, strict: bool, advice: str):
    choice = shrink.Choice(Cell(48, "int8"), dev={"kept": 0.99}, test={"kept": kept})
    found = shrink.Shrunk(384, "recall@10", 0.98, strict, pl.DataFrame(), choice, None, None)
    said = _doubt(choice, found)
    assert len(said) == lines
    assert all(advice in line for line in said)
