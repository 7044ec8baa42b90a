"""The table of results against sentence-transformers' evaluator, trec_eval and numpy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import pytrec_eval

from fixtures.qrels import as_dicts
from nestling.errors import InputError
from nestling.evaluation.benchmark import Benchmark
from nestling.evaluation.cell_search import CellSearch, Fitted, Vectors
from nestling.evaluation.cells import Cell, cells_of
from nestling.evaluation.grid import CELL, by_query, sizes_of
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.judgments.toolshed import generate
from nestling.models.torch_encoder import embed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

THRESHOLD = 2.5
MEASURES = tuple(Measure.parse(text) for text in ("recall@10", "mrr@10", "ndcg@10", "map@10", "hit@3", "precision@5"))


def unasked() -> Vectors:
    raise AssertionError("nothing is to be fitted here")


@pytest.fixture(scope="module")
def qrels() -> Qrels:
    return Qrels.from_judgments(generate(400, seed=3), threshold=THRESHOLD)


@pytest.fixture(scope="module")
def vectors(tiny_model: SentenceTransformer, qrels: Qrels) -> Vectors:
    return Vectors(embed(tiny_model, qrels.queries, kind="query"), embed(tiny_model, qrels.documents, kind="document"))


def measure_cells(
    vectors: Vectors, qrels: Qrels, cells: Sequence[Cell], measures: Sequence[Measure], fitted: Fitted
) -> pl.DataFrame:
    """Figures by query of each cell."""
    return Benchmark(qrels, None, None, tuple(measures)).measure(vectors, cells, fitted).per_query


def ranking_of(cell: Cell, vectors: Vectors, fitted: Fitted, k: int = 10) -> np.ndarray:
    return CellSearch(cell, vectors, fitted).top(k)[0]


def trec_eval(qrels: Qrels, ranking: np.ndarray) -> dict[str, np.ndarray]:
    """What trec_eval says of a ranking of ten, by query; -1 is no document."""
    graded: dict[str, dict[str, int]] = {}
    for row, query_id in enumerate(qrels.query_ids):
        entries = slice(qrels.judged_indptr[row], qrels.judged_indptr[row + 1])
        # The catalogue scores in hundredths; trec_eval takes whole numbers, and nDCG does not change with their unit.
        graded[query_id] = {
            qrels.document_ids[column]: round(100 * gain)
            for column, gain in zip(qrels.judged_columns[entries], qrels.gains[entries], strict=True)
        }
    relevant = {query_id: dict.fromkeys(found, 1) for query_id, found in as_dicts(qrels)[2].items()}
    run = {
        query_id: {qrels.document_ids[column]: -float(rank) for rank, column in enumerate(row) if column >= 0}
        for query_id, row in zip(qrels.query_ids, ranking.tolist(), strict=True)
    }
    names = {"recall@10": "recall.10", "mrr@10": "recip_rank", "hit@3": "success.3", "precision@5": "P.5"}
    binary = pytrec_eval.RelevanceEvaluator(relevant, set(names.values())).evaluate(run)
    found = {
        ours: np.array([binary[query_id][theirs.replace(".", "_")] for query_id in qrels.query_ids])
        for ours, theirs in names.items()
    }
    gains = pytrec_eval.RelevanceEvaluator(graded, {"ndcg_cut.10"}).evaluate(run)
    return found | {"ndcg@10": np.array([gains[query_id]["ndcg_cut_10"] for query_id in qrels.query_ids])}


@pytest.mark.parametrize("dim", [32, 12, 4])
def test_a_plain_cell_is_what_the_sentence_transformers_evaluator_finds_at_that_truncate_dim(
    dim: int, tiny_model: SentenceTransformer, qrels: Qrels, vectors: Vectors, tmp_path: Path
) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    stock = InformationRetrievalEvaluator(
        *as_dicts(qrels),
        accuracy_at_k=[3],
        precision_recall_at_k=[5, 10],
        mrr_at_k=[10],
        map_at_k=[10],
        ndcg_at_k=[10],
        truncate_dim=dim,
        write_csv=False,
        write_predictions=True,
    )
    theirs = stock(tiny_model, output_path=str(tmp_path))
    table = measure_cells(vectors, qrels, [Cell(dim)], MEASURES, Fitted(unasked))
    names = {
        "recall@10": "cosine_recall@10",
        "mrr@10": "cosine_mrr@10",
        "map@10": "cosine_map@10",
        "hit@3": "cosine_accuracy@3",
        "precision@5": "cosine_precision@5",
    }
    means = table.mean()
    assert {name: means[name].item() for name in names} == pytest.approx(
        {ours: theirs[name] for ours, name in names.items()}, abs=1e-9
    )
    # Their order, but where scores are so near that the last bits of an encoding decide.
    (written,) = tmp_path.glob("*_predictions_cosine.jsonl")
    lists = {line["query_id"]: line["results"] for line in map(json.loads, written.read_text().splitlines())}
    ranking, scores = CellSearch(Cell(dim), vectors, Fitted(unasked)).top(10)
    for query_id, row, found in zip(qrels.query_ids, ranking, scores, strict=True):
        expected = lists[query_id]
        assert found == pytest.approx([hit["score"] for hit in expected], abs=1e-5)
        near = {hit["corpus_id"]: hit["score"] for hit in expected}
        for column, score in zip(row, found, strict=True):
            assert near.get(qrels.document_ids[column], expected[-1]["score"]) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("cell", [Cell(32), Cell(8), Cell(8, "int8"), Cell(4, "binary", "pca", 3)], ids=str)
def test_each_cell_by_query_is_what_trec_eval_says_of_its_ranking(cell: Cell, qrels: Qrels, vectors: Vectors) -> None:
    fitted = Fitted(lambda: vectors)
    table = measure_cells(vectors, qrels, [cell], MEASURES, fitted)
    expected = trec_eval(qrels, ranking_of(cell, vectors, fitted))
    for name, values in expected.items():
        assert table[name].to_numpy() == pytest.approx(values, abs=1e-9), name
    assert 0 < table["recall@10"].to_numpy().mean() < 1


def test_rotation_at_full_size_leaves_recall_as_it_is(qrels: Qrels, vectors: Vectors) -> None:
    cells = [Cell(32), Cell(32, "float32", "pca")]
    table = measure_cells(vectors, qrels, cells, MEASURES[:1], Fitted(lambda: vectors))
    plain, turned = (table.filter(pl.col("rotation") == name)["recall@10"].to_list() for name in ("none", "pca"))
    assert turned == plain


def test_the_table_has_a_row_for_each_cell_and_query_in_order(qrels: Qrels, vectors: Vectors) -> None:
    cells = cells_of((32, 8), precisions=("float32", "binary"), rotations=("none", "pca"), oversampling=(4,))
    table = measure_cells(vectors, qrels, cells, MEASURES, Fitted(lambda: vectors))
    names = [str(measure) for measure in MEASURES]
    assert table.columns == [*CELL, "query_id", "query", *names]
    assert dict(table.select(list(CELL)).schema) == CELL
    expected = [
        (cell.dim, cell.precision, cell.rotation, cell.oversampling, cell.bytes)
        for cell in cells
        for _ in qrels.queries
    ]
    assert table.select(list(CELL)).rows() == expected
    assert table["query_id"].to_list() == qrels.query_ids * len(cells)
    assert table["query"].to_list() == qrels.queries * len(cells)


def test_cells_are_measured_as_they_are_alone(qrels: Qrels, vectors: Vectors) -> None:
    cells = cells_of((32, 8), precisions=("float32", "int4"), rotations=("none", "pca"), oversampling=(4,))
    together = measure_cells(vectors, qrels, cells, MEASURES, Fitted(lambda: vectors))
    apart = [measure_cells(vectors, qrels, [cell], MEASURES, Fitted(lambda: vectors)) for cell in cells]
    assert together.equals(pl.concat(apart))


def worked() -> Qrels:
    """Query a has documents 0 and 2 (gains 3 and 2; 1 is judged with 1), query b document 3."""
    rows = [("a", "d0", 4.0), ("a", "d1", 2.0), ("a", "d2", 3.0), ("b", "d3", 4.0), ("b", "d0", 1.0)]
    frame = pl.DataFrame(
        [(query, f"text {query}", document, f"text {document}", score) for query, document, score in rows],
        schema=["query_id", "query", "document_id", "document", "score"],
        orient="row",
    )
    return Qrels.from_judgments(Judgments.from_frame(frame, scale=(1.0, 4.0)), threshold=THRESHOLD)


def test_a_ranking_padded_with_minus_one_is_measured_as_if_it_ended_there() -> None:
    measures = [Measure.parse(text) for text in ("recall@3", "mrr@3", "ndcg@3", "map@3", "hit@1", "precision@3")]
    ranking = np.array([[1, 2, -1], [-1, -1, -1]])
    table = by_query(None, ranking, worked(), measures)
    ideal = 3 + 2 / np.log2(3) + 1 / 2
    expected = [1 / 2, 1 / 2, (1 + 2 / np.log2(3)) / ideal, (1 / 2) / 2, 0.0, 1 / 3]
    first, second = table.select([str(measure) for measure in measures]).rows()
    assert first == pytest.approx(expected)
    assert second == (0.0,) * 6


def test_a_ranking_without_embeddings_has_no_size_and_takes_no_bytes() -> None:
    table = by_query(None, np.array([[0, 1], [3, -1]]), worked(), [Measure.parse("hit@1")])
    assert dict(table.select(list(CELL)).schema) == CELL
    assert table.rows() == [
        (0, "", "none", 0, 0, "a", "text a", 1.0),
        (0, "", "none", 0, 0, "b", "text b", 1.0),
    ]


def test_the_columns_of_a_cell_say_which_it_is() -> None:
    table = by_query(Cell(9, "binary", "pca", 4), np.array([[0], [1]]), worked(), [Measure.parse("hit@1")])
    assert table.rows() == [
        (9, "binary", "pca", 4, 4, "a", "text a", 1.0),
        (9, "binary", "pca", 4, 4, "b", "text b", 0.0),
    ]


@pytest.mark.parametrize(
    ("full", "sizes"), [(384, (384, 192, 96, 48)), (100, (100, 50, 25, 12)), (9, (9, 4, 2, 1)), (3, (3, 1)), (1, (1,))]
)
def test_sizes_are_by_default_the_models_own_its_half_quarter_and_eighth(full: int, sizes: tuple[int, ...]) -> None:
    assert sizes_of(full, None) == sizes


def test_sizes_are_the_models_own_then_those_below_it() -> None:
    assert sizes_of(384, (384, 192, 96)) == (384, 192, 96)
    assert sizes_of(300, (192, 96)) == (300, 192, 96)
    assert sizes_of(64, ()) == (64,)
    with pytest.raises(InputError, match="size 768 is larger than the model's 384 dims; give sizes of 384 or less"):
        sizes_of(384, (768, 384))
