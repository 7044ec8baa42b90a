"""Joined models: stock modules, the same size, both vectors in it; and the trainings that lead to one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, WordEmbeddings
from tokenizers import Tokenizer

from fixtures.training import Trained, begin, join, keep_every_step, trained_and_kept, trained_with_notes
from nestling.errors import InputError
from nestling.evaluation.measures import Measure
from nestling.judgments.split import Split
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model, load_model, save_model
from nestling.models.torch_encoder import embed
from nestling.training.inputs.starts import texts
from nestling.training.inputs.static import build_static
from nestling.training.result import TrainingResult
from nestling.training.steps.concat_static import SHARES

JUDGMENTS = generate(300, seed=0)
QUERIES, DOCUMENTS = texts(JUDGMENTS)


@pytest.fixture(scope="module")
def table(tiny_model_path: Path) -> SentenceTransformer:
    return build_static(find_model(str(tiny_model_path)), [*QUERIES, *DOCUMENTS])


@pytest.fixture(scope="module")
def joined(tiny_model_path: Path, table: SentenceTransformer) -> SentenceTransformer:
    return join(load_model(str(tiny_model_path)), table, QUERIES, DOCUMENTS)


def test_prompts_are_kept_and_add_nothing_to_the_words(
    tiny_model_path: Path, table: SentenceTransformer, tmp_path: Path
):
    prompts = {"query": "drill: ", "document": "saw: "}
    source = find_model(str(tiny_model_path), prompts=prompts)
    joined = join(load_model(source), table, QUERIES, DOCUMENTS)
    words = part(joined, WordEmbeddings).emb_layer.weight
    pieces = joined.tokenizer("drill: saw:")["input_ids"]
    assert float(words[pieces].abs().max()) == 0.0 < float(words.abs().max())
    save_model(joined, tmp_path / "model")
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert loaded.prompts == prompts
    for kind, encode in (("query", loaded.encode_query), ("document", loaded.encode_document)):
        np.testing.assert_allclose(encode(DOCUMENTS[:5]), embed(joined, DOCUMENTS[:5], kind=kind), atol=1e-6)


def part(model: SentenceTransformer, kind: type) -> object:
    return next(module for module in reversed(list(model)) if isinstance(module, kind))


def test_it_has_the_size_of_the_model_and_is_saved_as_modules_of_the_library(
    joined: SentenceTransformer, tiny_model: SentenceTransformer, tmp_path: Path
):
    joined.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert loaded.get_embedding_dimension() == tiny_model.get_embedding_dimension()
    assert loaded.max_seq_length == tiny_model.max_seq_length
    assert all(type(module).__module__.startswith("sentence_transformers.") for module in loaded)
    np.testing.assert_allclose(loaded.encode(DOCUMENTS[:5]), joined.encode(DOCUMENTS[:5]), atol=1e-6)


def test_the_embedding_is_the_two_vectors_side_by_side_rotated(
    joined: SentenceTransformer, tiny_model: SentenceTransformer
):
    some = [*QUERIES[:3], *DOCUMENTS[:3]]
    words = part(joined, WordEmbeddings)
    table = words.emb_layer.weight.detach().numpy()  # type: ignore[attr-defined]
    special = set(tiny_model.tokenizer.all_special_ids)
    lexical = []
    for text in some:
        ids = tiny_model.tokenizer(text)["input_ids"]
        lexical.append(table[[i for i in ids if i not in special]].sum(axis=0) / np.sqrt(len(ids)))
    both = np.hstack([tiny_model.encode(some), np.array(lexical)])
    both = both @ joined[-2].linear.weight.detach().numpy().T
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(joined.encode(some), both, atol=1e-5)


def test_the_lexical_half_is_as_long_as_its_share(joined: SentenceTransformer):
    modules = list(joined)[:-2]
    assert isinstance(modules[-1], Pooling)
    halves = SentenceTransformer(modules=modules, device="cpu").encode(DOCUMENTS, normalize_embeddings=False)
    size = halves.shape[1] // 2
    np.testing.assert_allclose(np.linalg.norm(halves[:, :size], axis=1), 1, atol=1e-5)
    assert np.linalg.norm(halves[:, size:], axis=1).mean() == pytest.approx(SHARES[0] ** 0.5, abs=0.05)


def test_a_batch_of_texts_gives_what_each_gives_alone(joined: SentenceTransformer):
    some = ["saw", *DOCUMENTS[:4]]
    alone = np.vstack([joined.encode([text]) for text in some])
    np.testing.assert_allclose(joined.encode(some), alone, atol=1e-5)


def test_shared_words_count_for_more_than_in_the_transformer_alone(
    joined: SentenceTransformer, tiny_model: SentenceTransformer
):
    def correlation(model: SentenceTransformer) -> float:
        vectors = model.encode(DOCUMENTS[:200], normalize_embeddings=True)
        words = [set(document.lower().split()) for document in DOCUMENTS[:200]]
        shared = np.array([[len(a & b) / len(a | b) for a in words] for b in words])
        upper = np.triu_indices(len(words), 1)
        return float(np.corrcoef(shared[upper], (vectors @ vectors.T)[upper])[0, 1])

    assert correlation(joined) > correlation(tiny_model)


def test_what_does_not_fit_is_refused(table: SentenceTransformer, tiny_model: SentenceTransformer):
    with pytest.raises(InputError, match="transformer"):
        join(table, table, QUERIES, DOCUMENTS)
    tokenizer = Tokenizer.from_str(table[0].tokenizer.to_str())
    tokenizer.add_tokens(["pergola"])
    size = tokenizer.get_vocab_size()
    other = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=np.zeros((size, 32), "f4"))])
    with pytest.raises(InputError, match="vocabulary"):
        join(tiny_model, other, QUERIES, DOCUMENTS)


@pytest.fixture(scope="module")
def concatenated(
    split: Split, tiny_model_path: Path, plain: Trained, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trained, list[float | None]]:
    """A training whose concatenation was kept, and the dev figures that were reported after its first step."""
    reported: list[float | None] = []
    with pytest.MonkeyPatch.context() as patch:
        keep_every_step(patch)
        folder = begin(plain, tmp_path_factory.mktemp("concatenated"))
        options = {"concat_static": True, "report": lambda progress: reported.append(progress.dev)}
        return trained_and_kept(split, tiny_model_path, folder, **options), reported


def test_a_lexical_training_is_two_trainings_and_their_concatenation(
    split: Split, plain: Trained, concatenated: tuple[Trained, list[float | None]]
):
    result, notes, folder = concatenated[0]
    loaded = load_model(str(folder / "model"))
    assert any(isinstance(module, WordEmbeddings) for module in loaded)
    assert any(note.startswith("concatenated: dev recall@10") for note in notes)
    alone = load_model(str(plain[2] / "model"))
    assert result.after["dev_recall@10"] != pytest.approx(recall(alone, split), abs=1e-9), "the figure is of both"
    assert result.after["dev_recall@10"] == pytest.approx(recall(loaded, split), abs=1e-6)


@pytest.mark.usefixtures("kept")
def test_a_concatenation_below_its_base_is_logged(
    split: Split,
    tiny_model_path: Path,
    concatenated: tuple[Trained, list[float | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(TrainingResult, "regression", True)
    trained_with_notes(split, tiny_model_path, begin(concatenated[0], tmp_path), concat_static=True)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(line.startswith("model: dev recall@10") and line.endswith("REGRESSION") for line in warned)


def test_dev_figures_of_the_table_are_not_reported_as_the_variants(
    plain: Trained, concatenated: tuple[Trained, list[float | None]]
):
    # The table evaluates itself after each epoch.
    assert any("eval_dev_recall@10" in entry for entry in plain[0].history)
    assert concatenated[1]
    assert set(concatenated[1]) == {None}


@pytest.mark.usefixtures("kept")
def test_an_interrupted_lexical_training_keeps_the_part_that_is_done(
    split: Split,
    tiny_model_path: Path,
    plain: Trained,
    concatenated: tuple[Trained, list[float | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    begin(plain, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "nestling.training.steps.concat_static.side_by_side", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            trained_with_notes(split, tiny_model_path, tmp_path, concat_static=True)
    assert not (tmp_path / "model").exists()
    again, notes = trained_with_notes(split, tiny_model_path, tmp_path, concat_static=True)
    assert "the table:" not in notes
    assert not any(note.startswith("precision") for note in notes)
    assert again.after == concatenated[0][0].after


def recall(model: SentenceTransformer, split: Split) -> float:
    from nestling.evaluation.qrels import Qrels
    from nestling.models.torch_encoder import embed
    from nestling.retrieval.exact_search import top_k

    qrels = Qrels.from_judgments(split.dev, threshold=2.5)
    ranking, _ = top_k(embed(model, qrels.queries, kind="query"), embed(model, qrels.documents, kind="document"), 10)
    return float(Measure.parse("recall@10").per_query(ranking, qrels).mean())
