from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.qrels import as_dicts
from nestling.errors import InputError
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.trec import read_run, run_to_ranking
from nestling.judgments.table import Judgments

THRESHOLD = 1.0


def qrels_of(rows: list[tuple[str, str, float]], *, scale: tuple[float, float] = (0.0, 3.0), **options) -> Qrels:
    """Qrels of (query id, document id, score); texts are the ids."""
    frame = pl.DataFrame(
        [(query, f"query {query}", document, f"document {document}", score) for query, document, score in rows],
        schema=["query_id", "query", "document_id", "document", "score"],
        orient="row",
    )
    return Qrels.from_judgments(Judgments.from_frame(frame, scale=scale), **{"threshold": THRESHOLD, **options})


def random_qrels(rng: np.random.Generator, scores: list[float]) -> Qrels:
    """Eight queries over twenty-five documents, each query with a relevant one."""
    drawn = rng.choice([-1.0, -1.0, *scores], size=(8, 25))
    drawn[np.arange(8), rng.integers(0, 25, size=8)] = max(scores)
    names = [f"{letter}{j}" for j, letter in enumerate("aBéß漢dD-_." * 3)][:25]
    judged = [(f"q{i}", names[j], drawn[i, j]) for i in range(8) for j in range(25) if drawn[i, j] >= 0]
    others = [("other", names[j], max(scores)) for j in range(25)]
    return qrels_of(judged + others)


def expected(run_path: Path, name: str, qrels: Qrels, *, graded: bool = False) -> np.ndarray:
    """The measure as trec_eval -c has it of the run, (n_queries,): of gains with `graded`, else of 0 and 1."""
    known = as_dicts(qrels)[2]
    # Sixths, as the gain of a text that is there two or three times is a mean, and trec_eval takes whole numbers.
    level = int(6 * THRESHOLD) + 1 if graded else 1
    judged: dict[str, dict[str, int]] = {}
    rows = np.repeat(np.arange(qrels.n_queries), np.diff(qrels.judged_indptr))
    for row, column, gain in zip(rows, qrels.judged_columns, qrels.gains, strict=True):
        query, document = qrels.query_ids[row], qrels.document_ids[column]
        judged.setdefault(query, {})[document] = round(6 * gain) if graded else int(document in known[query])
    with run_path.open() as run_file:
        run = pytrec_eval.parse_run(run_file)
    results = pytrec_eval.RelevanceEvaluator(judged, {name}, relevance_level=level).evaluate(run)
    return np.array([results.get(query_id, {}).get(name.replace(".", "_"), 0.0) for query_id in qrels.query_ids])


MEASURES = [("recall@5", "recall.5"), ("recall@20", "recall.20"), ("precision@5", "P.5"), ("mrr@25", "recip_rank")]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_run_of_another_engine_measures_as_trec_eval_measures_its_file(seed: int) -> None:
    rng = np.random.default_rng(seed)
    qrels = random_qrels(rng, [0.0, 1.0, 2.0, 3.0])
    # Ties, also in single precision alone, and documents and queries that the qrels lack.
    pool = [*qrels.document_ids[::2], *(f"unknown{i}" for i in range(5))]
    lines = [
        f"{query} Q0 {document} {rng.integers(0, 9)} {rng.choice([0.5, 1.0, 1.0 + 1e-9, -3.0, 7.25])} engine\n"
        for query in [*qrels.query_ids[:-2], "nobody"]
        for document in rng.permutation(pool)[: rng.integers(1, len(pool))]
    ]
    with tempfile.TemporaryDirectory() as folder:
        run_path = Path(folder) / "a.run"
        run_path.write_text("".join(lines[i] for i in rng.permutation(len(lines))))
        found = run_to_ranking(read_run(run_path), qrels, depth=25)
        for ours, theirs in MEASURES:
            values = Measure.parse(ours).per_query(found.ranking, qrels)
            assert values == pytest.approx(expected(run_path, theirs, qrels), abs=1e-9)
            assert values == pytest.approx(expected(run_path, theirs, qrels, graded=True), abs=1e-9)
        ndcg = Measure.parse("ndcg@10").per_query(found.ranking, qrels)
        assert ndcg == pytest.approx(expected(run_path, "ndcg_cut.10", qrels, graded=True), abs=1e-9)
        # map_cut divides by all relevant documents, map@k by those that k places can hold.
        share = qrels.n_relevant / np.minimum(5, qrels.n_relevant)
        assert Measure.parse("map@5").per_query(found.ranking, qrels) == pytest.approx(
            expected(run_path, "map_cut.5", qrels) * share, abs=1e-9
        )
    assert (found.unknown_queries, found.missing_queries) == (1, 2)
    assert found.unknown_documents <= 5


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_run_that_returns_copies_of_a_document_measures_as_trec_eval_measures_it_merged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text_of = {f"d{n:02}": f"text {n % 9}" for n in rng.permutation(20).tolist()}
    rows = [(f"q{q}", f"query {q}", d, text_of[d], float(rng.integers(0, 4))) for q in range(4) for d in text_of]
    rows = [row for row in rows if rng.random() < 0.5] + [
        (f"q{q}", f"query {q}", "d00", "text 0", 3.0) for q in range(4)
    ]
    frame = pl.DataFrame(rows, schema=["query_id", "query", "document_id", "document", "score"], orient="row")
    qrels = Qrels.from_judgments(Judgments.from_frame(frame, scale=(0.0, 3.0)), threshold=THRESHOLD)
    there = sorted(qrels.column_of)
    scores = {f"q{q}": dict(zip(there, rng.permutation(len(there)).tolist(), strict=True)) for q in range(4)}
    merged: dict[str, dict[str, float]] = {}
    for query, found in scores.items():
        best = merged.setdefault(query, {})
        for document, score in found.items():
            first = min(name for name in there if text_of[name] == text_of[document])
            best[first] = max(float(score), best.get(first, -1.0))
    with tempfile.TemporaryDirectory() as folder:
        raw, ours = (Path(folder) / name for name in ("raw.run", "merged.run"))
        raw.write_text("".join(f"{q} Q0 {d} 0 {s} raw\n" for q, found in scores.items() for d, s in found.items()))
        ours.write_text("".join(f"{q} Q0 {d} 0 {s} m\n" for q, found in merged.items() for d, s in found.items()))
        ranking = run_to_ranking(read_run(raw), qrels, depth=25).ranking
        for name, theirs in MEASURES:
            values = Measure.parse(name).per_query(ranking, qrels)
            assert values == pytest.approx(expected(ours, theirs, qrels), abs=1e-9)
        values = Measure.parse("ndcg@10").per_query(ranking, qrels)
        assert values == pytest.approx(expected(ours, "ndcg_cut.10", qrels, graded=True), abs=1e-9)


QRELS = qrels_of([("q1", "d1", 3), ("q1", "d2", 0), ("q2", "d2", 2), ("q2", "d3", 1), ("q3", "d1", 3)])


def test_a_run_file_reads_as_the_field_writes_it(tmp_path: Path) -> None:
    (tmp_path / "a.run").write_text("q1 Q0 d3 1 2.0 mini\nq1 Q0 d1 2 1.0 mini\nq2 Q0 d2 1 2.0 mini\n")
    assert read_run(tmp_path / "a.run").rows() == [
        ("q1", "d3", 1, 2.0, "mini"),
        ("q1", "d1", 2, 1.0, "mini"),
        ("q2", "d2", 1, 2.0, "mini"),
    ]


def test_equal_scores_of_another_engine_break_by_falling_id_and_its_ranks_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.run"
    path.write_text("q1\tQ0\ta\t1\t5\tx\r\n\n  q1 Q0 Z 2 5.0 x\nq1 Q0  b 3 5e0 x \nq1 Q0 c 9 6 x")
    assert read_run(path).select("document_id", "rank").rows() == [("c", 1), ("b", 2), ("a", 3), ("Z", 4)]


def test_queries_keep_the_order_of_the_file_also_where_their_lines_are_mixed(tmp_path: Path) -> None:
    path = tmp_path / "a.run"
    path.write_text("q2 Q0 a 1 5 x\nq1 Q0 a 1 5 x\nq2 Q0 b 2 9 x\n")
    assert read_run(path).select("query_id", "document_id").rows() == [("q2", "b"), ("q2", "a"), ("q1", "a")]


def test_documents_outside_the_corpus_keep_their_places(tmp_path: Path) -> None:
    path = tmp_path / "a.run"
    path.write_text("q1 Q0 alien 1 9 x\nq1 Q0 d1 2 8 x\nq1 Q0 other 3 7 x\nq9 Q0 d1 1 9 x\nq2 Q0 d2 1 1 x\n")
    found = run_to_ranking(read_run(path), QRELS, depth=3)
    assert found.ranking.tolist() == [[-1, 0, -1], [1, -1, -1], [-1, -1, -1]]
    assert (found.unknown_queries, found.missing_queries, found.unknown_documents) == (1, 1, 2)
    assert Measure.parse("mrr@3").per_query(found.ranking, QRELS).tolist() == [0.5, 1.0, 0.0]


def test_a_run_deeper_than_asked_is_cut_and_a_shallower_one_filled_up(tmp_path: Path) -> None:
    (tmp_path / "a.run").write_text("".join(f"q{q} Q0 d{d} 0 {d} x\n" for q in (1, 2, 3) for d in (1, 2, 3)))
    run = read_run(tmp_path / "a.run")
    assert run_to_ranking(run, QRELS, depth=2).ranking.tolist() == [[2, 1]] * 3
    assert run_to_ranking(run, QRELS, depth=100).ranking.shape == (3, 100)


def test_a_packed_file_holds_the_same(tmp_path: Path) -> None:
    line = b"q1 Q0 d1 1 2.0 x\n"
    (tmp_path / "a.run").write_bytes(line)
    (tmp_path / "a.run.gz").write_bytes(gzip.compress(line))
    assert read_run(tmp_path / "a.run.gz").equals(read_run(tmp_path / "a.run"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q1 Q0 d1 1 2 x\n\nq1 Q0 d2 2 1\n", "line 3: 'q1 Q0 d2 2 1' has 5 fields, not the 6 of query_id Q0"),
        (b"q1 Q0 d1 1 2 my model\n", "line 1: .* has 7 fields"),
        (b"q1 Q0 d 1 1 2 my model\n", "line 1: .* has 8 fields"),
        (b"q1 Q0 d1 1 2 x\nq1 Q0 d2 2 high x\n", "line 2: the score 'high' is not a finite number"),
        (b"q1 Q0 d1 1 nan x\n", "line 1: the score 'nan'"),
        (b"q1 Q0 d1 1 inf x\n", "line 1: the score 'inf'"),
        (b"q1 Q0 d1 1 2 x\nq2 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x\n", "line 3: the document_id 'd1' is there for the second"),
        (b"q1 Q0 d1 1 2 x\nq1 Q0 d\xff 1 2 x\n", "line 2: is not UTF-8"),
        (b" \n\n", "holds no lines"),
        (b"", "holds no lines"),
        (b"\x1f\x8bnot gzip", "cannot be unpacked"),
        (gzip.compress(b"q1 Q0 d1 1 2 x\n", mtime=0)[:-3], "cannot be unpacked"),
    ],
)
def test_a_malformed_run_is_refused_with_file_and_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.run"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"bad.run.*{message}") as caught:
        read_run(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_run_for_other_queries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_run(tmp_path / "none.run")
    (tmp_path / "a.run").write_text("7 Q0 d1 1 2 x\n")
    with pytest.raises(InputError, match="none of the run's queries is in the qrels: it has '7', they have 'q1'"):
        run_to_ranking(read_run(tmp_path / "a.run"), QRELS, depth=3)


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.run").write_text("q1 Q0 d1 1 -2 x\n", encoding="utf-8-sig")
    assert read_run(tmp_path / "a.run").rows() == [("q1", "d1", 1, -2.0, "x")]
