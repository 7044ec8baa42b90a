"""The rotation: what PCA promises of a matrix, and that a model with it is the same model turned."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.models.torch_encoder import embed
from nestling.retrieval.rotation import add_rotation, append_linear, fit_rotation, principal_axes, rotated

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = ["steel drill 12 inch", "white door", "wood door", "water heater", "sink light", "door paint", "hammer", "saws"]

seeds = st.integers(0, 10_000)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 12))


def points(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Rows off the origin and longer in some directions than in others, as embeddings are."""
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(shape[1], shape[1])) * rng.exponential(size=shape[1])
    return (rng.normal(size=shape) @ spread + rng.normal(size=shape[1])).astype(np.float32)


def energy(rows: np.ndarray) -> np.ndarray:
    return np.sum(rows.astype(np.float64) ** 2, axis=0)


@given(seeds, shapes)
def test_the_matrix_is_orthogonal_even_with_fewer_rows_than_dims(seed: int, shape: tuple[int, int]):
    rotation = fit_rotation(points(seed, shape))
    assert rotation.dtype == np.float32
    assert rotation.T @ rotation == pytest.approx(np.eye(shape[1]), abs=1e-5)


@given(seeds, shapes)
def test_products_of_full_size_stay_the_same(seed: int, shape: tuple[int, int]):
    rows = points(seed, shape).astype(np.float64)
    turned = rows @ fit_rotation(points(seed, shape))
    scale = float(np.abs(rows @ rows.T).max())
    assert turned @ turned.T == pytest.approx(rows @ rows.T, abs=1e-5 * scale)


@given(seeds, shapes)
def test_columns_fall_in_their_mean_square(seed: int, shape: tuple[int, int]):
    rows = points(seed, shape)
    found = energy(rows @ fit_rotation(rows))
    assert np.all(np.diff(found) <= 1e-5 * found.sum())


@given(seeds, seeds, shapes)
def test_no_other_rotation_puts_more_into_a_prefix(seed: int, other: int, shape: tuple[int, int]):
    rows = points(seed, shape)
    best = np.cumsum(energy(rows @ fit_rotation(rows)))
    rival, _ = np.linalg.qr(np.random.default_rng(other).normal(size=(shape[1], shape[1])))
    for matrix in (rival, np.eye(shape[1])):
        assert np.all(np.cumsum(energy(rows @ matrix)) <= best + 1e-5 * best[-1])


@given(seeds, shapes)
def test_the_largest_component_of_each_axis_is_positive(seed: int, shape: tuple[int, int]):
    rotation = fit_rotation(points(seed, shape))
    assert np.all(rotation[np.abs(rotation).argmax(axis=0), np.arange(shape[1])] > 0)


def test_rows_off_the_origin_are_not_centred():
    # Centred, the second column would be the strong one; as they are, all lie along the first.
    rows = np.array([[10, 1], [10, -1], [10, 2], [10, -2]], np.float32)
    assert fit_rotation(rows) == pytest.approx(np.eye(2), abs=1e-6)


def test_axes_worked_out_by_hand():
    # (1, 1) is the eigenvector of [[2, 1], [1, 2]] with value 3, (1, -1) that with value 1.
    assert principal_axes(np.array([[2.0, 1.0], [1.0, 2.0]])).T[0] == pytest.approx([0.5**0.5, 0.5**0.5])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,)])
def test_nothing_to_fit_is_refused(shape: tuple[int, ...]):
    with pytest.raises(InputError, match="a rotation needs embeddings of documents"):
        fit_rotation(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(value: float):
    rows = np.ones((5, 3), np.float32)
    rows[3, 1] = value
    with pytest.raises(InputError, match="row 3 of the documents' embeddings holds numbers that are not finite"):
        fit_rotation(rows)


def built(path: Path, kind: str) -> SentenceTransformer:
    """A tiny model of each shape that a rotation may meet; a fresh one, as it is changed in place."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    transformer, pooling, *_ = SentenceTransformer(str(path), device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ends = {
            "normalised": [Normalize()],
            "bare": [],
            "linear": [Dense(32, 16, bias=False, activation_function=torch.nn.Identity()), Normalize()],
            "linear at the end": [Dense(32, 16, bias=False, activation_function=torch.nn.Identity())],
            "with bias": [Dense(32, 16, bias=True, activation_function=torch.nn.Identity()), Normalize()],
            "bent": [Dense(32, 16, bias=False), Normalize()],
            "residual": [
                Dense(32, 32, bias=False, activation_function=torch.nn.Identity(), use_residual=True),
                Normalize(),
            ],
            "linear after normalised": [
                Normalize(),
                Dense(32, 16, bias=False, activation_function=torch.nn.Identity()),
            ],
        }
    return SentenceTransformer(modules=[transformer, pooling, *ends[kind]], device="cpu")


KINDS = [
    "normalised",
    "bare",
    "linear",
    "linear at the end",
    "with bias",
    "bent",
    "residual",
    "linear after normalised",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotated_model_is_saved_loaded_and_gives_the_same_vectors_rotated(
    tiny_model_path: Path, tmp_path: Path, kind: str
):
    from sentence_transformers import SentenceTransformer

    before = embed(built(tiny_model_path, kind), TEXTS, kind="document")
    rotation = fit_rotation(before)
    model = built(tiny_model_path, kind)
    add_rotation(model, rotation)
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    after = embed(loaded, TEXTS, kind="document")
    assert after == pytest.approx(before @ rotation, abs=1e-5)
    assert after @ after.T == pytest.approx(before @ before.T, abs=1e-5)
    assert loaded.similarity(loaded.encode(TEXTS), loaded.encode(TEXTS)).numpy() == pytest.approx(
        before @ before.T, abs=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("normalised", ["Transformer", "Pooling", "Dense", "Normalize"]),
        ("bare", ["Transformer", "Pooling", "Dense"]),
        ("linear", ["Transformer", "Pooling", "Dense", "Normalize"]),
        ("linear at the end", ["Transformer", "Pooling", "Dense"]),
        ("with bias", ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]),
        ("bent", ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]),
        ("residual", ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]),
        ("linear after normalised", ["Transformer", "Pooling", "Normalize", "Dense"]),
    ],
)
def test_a_layer_is_added_only_where_none_can_take_the_rotation_in(
    tiny_model_path: Path, kind: str, modules: list[str]
):
    model = built(tiny_model_path, kind)
    add_rotation(model, fit_rotation(embed(model, TEXTS, kind="document")))
    assert [type(module).__name__ for module in model] == modules


def test_a_second_rotation_goes_into_the_layer_of_the_first(tiny_model_path: Path):
    model = built(tiny_model_path, "normalised")
    before = embed(model, TEXTS, kind="query")
    first = fit_rotation(before)
    second = fit_rotation(np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32))
    layer = add_rotation(model, first)
    assert add_rotation(model, second) is layer
    assert embed(model, TEXTS, kind="query") == pytest.approx(before @ first @ second, abs=1e-5)


def test_a_table_of_word_vectors_is_rotated_too():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "drill": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.array([[1, 0], [0, 2], [4, 0]], np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    add_rotation(model, np.array([[0, 1], [1, 0]], np.float32))
    assert embed(model, ["red", "drill"], kind="document") == pytest.approx(np.eye(2), abs=1e-6)


def test_a_model_set_to_truncate_is_rotated_at_full_size(tiny_model_path: Path):
    model = built(tiny_model_path, "normalised")
    before = embed(model, TEXTS, kind="document")
    model.truncate_dim = 4
    add_rotation(model, fit_rotation(before))
    assert model.truncate_dim == 4
    assert embed(model, TEXTS, kind="document") == pytest.approx(before @ fit_rotation(before), abs=1e-5)


def test_what_a_module_is_called_with_follows_it_to_its_new_place(tiny_model_path: Path):
    from sentence_transformers import SentenceTransformer

    names = OrderedDict(zip(["reader", "pool", "unit"], built(tiny_model_path, "normalised"), strict=True))
    model = SentenceTransformer(modules=names, device="cpu")
    model.module_kwargs = OrderedDict(reader=["task"], unit=["other"])
    append_linear(model, np.eye(32, dtype=np.float32))
    assert list(dict(model.named_children())) == ["0", "1", "2", "3"]
    assert model.module_kwargs == {"0": ["task"], "3": ["other"]}


def test_a_layer_takes_the_models_precision(tiny_model_path: Path):
    import torch

    model = built(tiny_model_path, "normalised").bfloat16()
    assert append_linear(model, np.eye(32, dtype=np.float32)).linear.weight.dtype == torch.bfloat16
    assert embed(model, TEXTS, kind="document").shape == (8, 32)


def test_a_layer_may_also_make_embeddings_smaller(tiny_model_path: Path):
    model = built(tiny_model_path, "normalised")
    before = embed(model, TEXTS, kind="document")
    append_linear(model, np.eye(32, 5, dtype=np.float32))
    assert model.get_embedding_dimension() == 5
    expected = before[:, :5] / np.linalg.norm(before[:, :5], axis=1, keepdims=True)
    assert embed(model, TEXTS, kind="document") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("rotation", "text"),
    [
        (np.eye(16), r"of shape \(16, 16\) does not fit a model of 32 dims"),
        (np.eye(32, 16), r"of shape \(32, 16\) does not fit"),
        (2 * np.eye(32), "is not orthogonal"),
        (np.full((32, 32), np.nan), "is not orthogonal"),
    ],
)
def test_what_is_no_rotation_of_the_model_is_refused(tiny_model_path: Path, rotation: np.ndarray, text: str):
    model = built(tiny_model_path, "normalised")
    with pytest.raises(InputError, match=text):
        add_rotation(model, rotation.astype(np.float32))
    assert len(model) == 3


@pytest.mark.parametrize("n", [1, 2, 7, 33, 64, 401])
def test_equal_rows_are_rotated_to_equal_ones_wherever_they_stand(n: int):
    rows = points(1, (n, 64)).astype(np.float32)
    rotation = fit_rotation(points(2, (200, 64)))
    assert rotated(rows, rotation) == pytest.approx(rows @ rotation, abs=1e-4)
    assert rotated(rows, rotation[:, :8]).shape == (n, 8)
    same = rotated(np.repeat(rows[:1], n, axis=0), rotation)
    assert (same == same[0]).all()
