from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.qrels import as_dicts
from nestling.errors import InputError
from nestling.evaluation.measures import MEASURES, Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments

THRESHOLD = 1.0


def qrels_of(scores: np.ndarray) -> Qrels:
    """Qrels of a (queries, documents) matrix of scores 0..3; -1 is not judged."""
    rows = [
        (f"q{i:03}", f"query {i}", f"d{j:03}", f"document {j}", float(scores[i, j]))
        for i, j in np.argwhere(scores >= 0)
    ]
    frame = pl.DataFrame(rows, schema=["query_id", "query", "document_id", "document", "score"], orient="row")
    return Qrels.from_judgments(Judgments.from_frame(frame, scale=(0.0, 3.0)), threshold=THRESHOLD)


def random_case(seed: int) -> tuple[Qrels, np.ndarray]:
    """Twelve queries over a corpus of about thirty documents, and a random ranking of the whole corpus."""
    rng = np.random.default_rng(seed)
    scores = rng.choice([-1, -1, -1, 0, 1, 2, 3], size=(12, 30))
    scores[:, 0] = 3
    qrels = qrels_of(scores)
    ranking = np.stack([rng.permutation(qrels.n_documents) for _ in range(qrels.n_queries)])
    return qrels, ranking


def trec(name: str, qrels: Qrels, ranking: np.ndarray, *, graded: bool) -> np.ndarray:
    """The measure as trec_eval has it, (n_queries,). Scores fall with the rank, so that it has no ties to break."""
    judged: dict[str, dict[str, int]] = {}
    for row, query_id in enumerate(qrels.query_ids):
        entries = slice(qrels.judged_indptr[row], qrels.judged_indptr[row + 1])
        judged[query_id] = {
            qrels.document_ids[column]: int(gain) if graded else int(gain > THRESHOLD)
            for column, gain in zip(qrels.judged_columns[entries], qrels.gains[entries], strict=True)
        }
    run = {
        query_id: {qrels.document_ids[column]: float(-rank) for rank, column in enumerate(ranking[row])}
        for row, query_id in enumerate(qrels.query_ids)
    }
    results = pytrec_eval.RelevanceEvaluator(judged, {name}).evaluate(run)
    return np.array([results[query_id][name.replace(".", "_")] for query_id in qrels.query_ids])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize(
    ("ours", "theirs", "graded"),
    [
        ("recall", "recall", False),
        ("precision", "P", False),
        ("hit", "success", False),
        ("ndcg", "ndcg_cut", True),
    ],
)
def test_measures_agree_with_trec_eval(ours: str, theirs: str, graded: bool, k: int, seed: int) -> None:
    qrels, ranking = random_case(seed)
    expected = trec(f"{theirs}.{k}", qrels, ranking, graded=graded)
    assert Measure(ours, k).per_query(ranking, qrels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 5, 30])
def test_mrr_agrees_with_trec_eval_on_the_ranking_cut_at_k(k: int, seed: int) -> None:
    qrels, ranking = random_case(seed)
    expected = trec("recip_rank", qrels, ranking[:, :k], graded=False)
    assert Measure("mrr", k).per_query(ranking, qrels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 5, 30])
def test_map_is_that_of_trec_eval_times_relevant_over_the_most_that_k_places_hold(k: int, seed: int) -> None:
    qrels, ranking = random_case(seed)
    scale = qrels.n_relevant / np.minimum(k, qrels.n_relevant)
    expected = trec(f"map_cut.{k}", qrels, ranking, graded=False) * scale
    assert Measure("map", k).per_query(ranking, qrels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_binary_measures_agree_with_the_sentence_transformers_evaluator(k: int) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    qrels, ranking = random_case(7)
    stock = InformationRetrievalEvaluator(
        *as_dicts(qrels), accuracy_at_k=[k], precision_recall_at_k=[k], mrr_at_k=[k], map_at_k=[k]
    )
    hits = [
        [{"corpus_id": qrels.document_ids[column], "score": float(-rank)} for rank, column in enumerate(row)]
        for row in ranking
    ]
    theirs = stock.compute_metrics(hits)
    names = {"recall": "recall", "precision": "precision", "hit": "accuracy", "mrr": "mrr", "map": "map"}
    expected = {ours: theirs[f"{name}@k"][k] for ours, name in names.items()}
    assert {name: Measure(name, k).per_query(ranking, qrels).mean() for name in names} == pytest.approx(expected)


RANKING = np.array([[3, 1, 0, 2]])
# Documents 0 and 2 are relevant (gain 3 and 2), document 1 is judged with gain 1, document 3 is not judged.
WORKED = {
    "recall@3": 1 / 2,
    "recall@4": 1.0,
    "precision@3": 1 / 3,
    "hit@2": 0.0,
    "hit@3": 1.0,
    "mrr@2": 0.0,
    "mrr@4": 1 / 3,
    "map@4": (1 / 3 + 2 / 4) / 2,
    "ndcg@1": 0.0,
    "ndcg@3": (1 / np.log2(3) + 3 / 2) / (3 + 2 / np.log2(3) + 1 / 2),
}


@pytest.mark.parametrize("measure", WORKED)
def test_measures_of_one_ranking_worked_by_hand(measure: str) -> None:
    qrels = qrels_of(np.array([[3, 1, 2, -1], [-1, -1, -1, 0]]))
    assert Measure.parse(measure).per_query(RANKING, qrels) == pytest.approx([WORKED[measure]])


def test_padding_is_never_a_hit() -> None:
    qrels = qrels_of(np.array([[0, 3], [3, 0]]))
    padded = np.array([[0, -1], [-1, 1]])
    assert Measure.parse("recall@2").per_query(padded, qrels).tolist() == [0.0, 0.0]


def test_a_corpus_smaller_than_k_needs_no_deeper_ranking_than_itself() -> None:
    qrels = qrels_of(np.array([[3, 0, 2]]))
    assert Measure.parse("recall@10").per_query(np.array([[1, 0, 2]]), qrels).tolist() == [1.0]


def test_precision_divides_by_k_even_where_the_corpus_is_smaller() -> None:
    qrels = qrels_of(np.array([[3, 0, 2]]))
    assert Measure.parse("precision@10").per_query(np.array([[1, 0, 2]]), qrels).tolist() == [0.2]


def test_a_ranking_shallower_than_k_is_refused() -> None:
    qrels, ranking = random_case(0)
    with pytest.raises(ValueError, match="recall@10 needs a ranking of 10 documents a query; this one has 9"):
        Measure.parse("recall@10").per_query(ranking[:, :9], qrels)


def test_a_ranking_of_another_number_of_queries_is_refused() -> None:
    qrels, ranking = random_case(0)
    with pytest.raises(ValueError, match="does not fit 12 queries"):
        Measure.parse("recall@10").per_query(ranking[:3], qrels)


def test_a_column_outside_the_corpus_is_refused() -> None:
    qrels = qrels_of(np.array([[3, 0], [0, 3]]))
    with pytest.raises(ValueError, match="outside the 2 of the corpus"):
        Measure.parse("hit@1").per_query(np.array([[2], [0]]), qrels)


@pytest.mark.parametrize("text", ["recall@10", "ndcg@1", "map@1000"])
def test_a_measure_reads_back_from_its_text(text: str) -> None:
    assert str(Measure.parse(text)) == text


def test_upper_and_lower_case_name_the_same_measure() -> None:
    assert Measure.parse(" nDCG@10") == Measure("ndcg", 10)


@pytest.mark.parametrize("text", ["recall", "recall@0", "recall@-1", "recall@ten", "bpref@10", "@10", ""])
def test_other_texts_are_refused_with_the_known_names(text: str) -> None:
    with pytest.raises(InputError, match="recall, mrr, ndcg, map, hit, precision"):
        Measure.parse(text)


def test_a_measure_made_by_hand_is_checked_too() -> None:
    with pytest.raises(InputError, match="unknown measure 'recall@0'"):
        Measure("recall", 0)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(1, 40), name=st.sampled_from(list(MEASURES)))
def test_every_measure_lies_within_zero_and_one(seed: int, k: int, name: str) -> None:
    qrels, ranking = random_case(seed)
    values = Measure(name, k).per_query(ranking, qrels)
    assert values.min() >= 0
    assert values.max() <= 1 + 1e-12


@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(1, 29), name=st.sampled_from(["recall", "hit", "mrr"]))
def test_looking_one_deeper_never_lowers_recall_hit_or_mrr(seed: int, k: int, name: str) -> None:
    qrels, ranking = random_case(seed)
    assert (Measure(name, k).per_query(ranking, qrels) <= Measure(name, k + 1).per_query(ranking, qrels)).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(1, 40), name=st.sampled_from(["ndcg", "mrr", "map", "hit"]))
def test_a_perfect_ranking_scores_one(seed: int, k: int, name: str) -> None:
    qrels, _ = random_case(seed)
    gains = np.full((qrels.n_queries, qrels.n_documents), -1.0)
    rows = np.repeat(np.arange(qrels.n_queries), np.diff(qrels.judged_indptr))
    gains[rows, qrels.judged_columns] = qrels.gains
    perfect = np.argsort(-gains, axis=1, kind="stable")
    assert Measure(name, k).per_query(perfect, qrels) == pytest.approx(np.ones(qrels.n_queries))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(1, 40))
def test_mean_recall_never_passes_the_ceiling(seed: int, k: int) -> None:
    qrels, ranking = random_case(seed)
    assert Measure("recall", k).per_query(ranking, qrels).mean() <= qrels.ceiling(k) + 1e-12
