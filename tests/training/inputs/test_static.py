"""The table of word-piece vectors: what the rows are, that any tool loads it, and that it learns."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nestling.errors import InputError
from nestling.models.load import ModelSource, find_model
from nestling.training.inputs.static import build_static, piece_weights

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = [
    "steel drill 12 inch",
    "white door",
    "wood door",
    "steel door",
    "water heater",
    "sink light",
    "door paint",
    "hammer",
]


@pytest.fixture(scope="module")
def base(tiny_model_path: Path) -> ModelSource:
    return find_model(str(tiny_model_path))


@pytest.fixture(scope="module")
def static(base: ModelSource) -> SentenceTransformer:
    return build_static(base, TEXTS)


def table(model: SentenceTransformer) -> np.ndarray:
    return model[0].embedding.weight.detach().cpu().numpy()


def test_the_saved_folder_is_loaded_by_plain_sentence_transformers(static: SentenceTransformer, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    static.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert [type(module).__name__ for module in loaded] == ["StaticEmbedding", "Normalize"]
    assert np.array_equal(loaded.encode(TEXTS), static.encode(TEXTS))


def test_there_is_a_row_for_each_id_even_where_ids_have_gaps(static: SentenceTransformer):
    # The tiny vocabulary lists "##s" twice, which leaves an id without an entry.
    vocabulary = static.tokenizer.get_vocab()
    assert len(vocabulary) <= max(vocabulary.values())
    assert table(static).shape == (max(vocabulary.values()) + 1, 32)


def test_embeddings_have_length_one(static: SentenceTransformer):
    assert np.linalg.norm(static.encode(TEXTS), axis=1) == pytest.approx(1.0, abs=1e-6)


def test_an_embedding_does_not_depend_on_the_rest_of_the_batch(static: SentenceTransformer):
    together = static.encode(TEXTS, batch_size=len(TEXTS))
    alone = np.stack([static.encode(text) for text in TEXTS])
    assert together == pytest.approx(alone, abs=1e-6)


def test_words_beyond_the_base_s_limit_still_count(static: SentenceTransformer, tiny_model: SentenceTransformer):
    long = "door " * 100
    assert not np.allclose(static.encode(long), static.encode(long + "hammer " * 100))
    assert np.allclose(tiny_model.encode(long), tiny_model.encode(long + "hammer " * 100))


def test_a_text_without_pieces_gets_zeros(static: SentenceTransformer):
    assert not static.encode("").any()


def test_weights_fall_with_the_share_of_a_piece():
    # Counts with one added: 4, 2, 1 of 7.
    weights = piece_weights([[0, 1], [0, 0], []], 3, frequency=1 / 7)
    assert weights == pytest.approx([1 / 5, 1 / 3, 1 / 2])


def test_a_frequent_piece_is_shorter_than_the_same_piece_when_it_is_rare(base: ModelSource):
    def length_of_door(texts: list[str]) -> float:
        model = build_static(base, texts, context_texts=0)
        door, hammer = model.tokenizer.token_to_id("door"), model.tokenizer.token_to_id("hammer")
        lengths = np.linalg.norm(table(model), axis=1)
        return float(lengths[door] / lengths[hammer])

    frequent = [f"door {word}" for word in ("steel", "wood", "white")]
    assert length_of_door(frequent) < length_of_door(["hammer " + word for word in ("steel", "wood", "white")])


def test_without_context_and_weights_the_rows_are_the_base_s_vectors_centred_and_rotated(
    base: ModelSource, tiny_model: SentenceTransformer
):
    # A huge `a` takes no weight off; what is left is the centred pooled vectors, rotated and scaled.
    model = build_static(base, TEXTS, frequency=1e9, context_texts=0)
    tokens = [*string.ascii_lowercase, "drill", "door"]
    ids = [model.tokenizer.token_to_id(token) for token in tokens]
    gram = table(model)[ids] @ table(model)[ids].T
    pooled = np.stack([by_id(tiny_model, piece) for piece in range(len(table(model)))])
    centred = pooled - pooled.mean(axis=0)
    chosen = centred[ids]
    expected = chosen @ chosen.T / np.mean(np.sum(centred**2, axis=1))
    assert gram == pytest.approx(expected, abs=1e-5)


def by_id(model: SentenceTransformer, piece: int) -> np.ndarray:
    """The mean of a piece's token vectors between the special tokens."""
    import torch

    tokenizer = model.tokenizer
    ids = torch.tensor([[tokenizer.cls_token_id, piece, tokenizer.sep_token_id]])
    with torch.inference_mode():
        features = model[0]({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return features["token_embeddings"][0].mean(dim=0).numpy()


def test_the_same_arguments_give_the_same_table(base: ModelSource, static: SentenceTransformer):
    assert np.array_equal(table(build_static(base, TEXTS)), table(static))


def test_equal_texts_count_once(base: ModelSource, static: SentenceTransformer):
    assert np.array_equal(table(build_static(base, TEXTS + TEXTS)), table(static))


def test_context_depends_on_the_seed_that_draws_the_texts(base: ModelSource):
    without = build_static(base, TEXTS, context_texts=0)
    within = build_static(base, TEXTS, context_texts=2)
    other = build_static(base, TEXTS, context_texts=2, seed=1)
    assert not np.allclose(table(within), table(without))
    assert not np.allclose(table(within), table(other))


def test_a_prefix_carries_most_of_the_spread(static: SentenceTransformer):
    spread = static.encode(TEXTS).var(axis=0)
    assert np.all(np.diff(spread) <= 1e-6)


def test_rows_have_a_root_mean_square_length_of_one(static: SentenceTransformer):
    assert np.mean(np.sum(table(static) ** 2, axis=1)) == pytest.approx(1.0)


def test_no_texts_are_refused(base: ModelSource):
    with pytest.raises(InputError, match="needs training texts"):
        build_static(base, [])


def test_a_static_base_is_refused(static: SentenceTransformer, tmp_path: Path):
    static.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    with pytest.raises(InputError, match="is itself static"):
        build_static(find_model(str(tmp_path / "model")), TEXTS)


def test_a_base_without_a_fast_tokenizer_is_refused(
    base: ModelSource, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from nestling.training.inputs import static as module

    model = module.load_model(base)
    monkeypatch.setattr(type(model), "tokenizer", object())
    monkeypatch.setattr(module, "load_model", lambda _: model)
    with pytest.raises(InputError, match="has no fast tokenizer"):
        build_static(base, TEXTS)


def test_a_few_steps_of_training_lower_the_loss(base: ModelSource, tmp_path: Path):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    model = build_static(base, TEXTS)
    pairs = Dataset.from_dict(
        {"anchor": ["drill", "door", "heater", "light"] * 4, "positive": ["hammer", "wood", "water", "sink"] * 4}
    )
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=15), [32, 8])
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=4,
        per_device_train_batch_size=4,
        learning_rate=0.005,
        batch_sampler="no_duplicates",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
