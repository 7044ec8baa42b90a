"""Training only the word embeddings that the texts hold: the same outcome as with the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from nestling.training.fast.partial_embedding import ActiveEmbedding, train_active_rows

TEXTS = ["brass door hinge", "deck screw", "a door for the deck"]
OTHER = "zinc paint 2 in. xylophone"


def table_of(model: SentenceTransformer) -> nn.Embedding:
    found: nn.Embedding = model[0].model.get_input_embeddings()
    return found


def trained(path: Path, *, active: bool, steps: int = 5) -> SentenceTransformer:
    model = SentenceTransformer(str(path), device="cpu")
    features = model.preprocess(TEXTS)
    if active:
        assert train_active_rows(model, features["input_ids"].numpy().ravel())
    model.train()
    # Dropout would draw other numbers for each side.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(dict(features))["sentence_embedding"][:, 0].sum().backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def both(tiny_model_path: Path) -> tuple[SentenceTransformer, SentenceTransformer]:
    return trained(tiny_model_path, active=False), trained(tiny_model_path, active=True)


def test_weights_are_those_of_training_the_whole_table(both):
    whole, active = (model.state_dict() for model in both)
    assert whole.keys() == active.keys()
    for name, value in whole.items():
        torch.testing.assert_close(active[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_fewer_parameters_are_trained(both):
    whole, active = both
    used = len(np.unique(active.preprocess(TEXTS)["input_ids"]))
    assert table_of(active).weight.shape[0] <= used + 1 < table_of(whole).weight.shape[0]


def test_any_text_is_embedded_alike_texts_with_untrained_words_too(both):
    whole, active = both
    np.testing.assert_allclose(active.encode([OTHER, *TEXTS]), whole.encode([OTHER, *TEXTS]), atol=1e-5)


def test_it_is_saved_and_loaded_as_a_whole_table(both, tmp_path: Path):
    _, active = both
    active.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert type(table_of(loaded)) is nn.Embedding
    np.testing.assert_array_equal(loaded.encode([OTHER, *TEXTS]), active.encode([OTHER, *TEXTS]))


def test_a_state_from_a_checkpoint_is_taken_up(tiny_model_path: Path, both):
    whole, _ = both
    model = trained(tiny_model_path, active=True, steps=0)
    model.load_state_dict(whole.state_dict())
    np.testing.assert_allclose(model.encode([OTHER, *TEXTS]), whole.encode([OTHER, *TEXTS]), atol=1e-6)


def test_a_token_outside_is_looked_up_but_not_trained():
    whole = nn.Embedding(5, 2)
    table = ActiveEmbedding(whole, np.array([0, 3]))
    found = table(torch.tensor([[0, 1, 3]]))
    torch.testing.assert_close(found, whole(torch.tensor([[0, 1, 3]])))
    found.sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.tolist() == [[1, 1], [1, 1]]
    torch.testing.assert_close(table.eval()(torch.tensor([1])), whole(torch.tensor([1])))


def test_tables_of_an_unusual_kind_are_left_alone(tiny_model_path: Path):
    model = SentenceTransformer(str(tiny_model_path), device="cpu")
    table_of(model).weight.requires_grad_(False)
    before = table_of(model)
    assert not train_active_rows(model, np.array([1, 2]))
    assert table_of(model) is before
