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

from fixtures.places import HOME_DEPOT
from nestling.errors import InputError
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.trec import read_qrels, read_run, run_to_ranking, write_qrels, write_run
from nestling.judgments.table import Judgments
from nestling.retrieval.exact_search import top_k

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


def expected(qrels_path: Path, run_path: Path, name: str, qrels: Qrels, *, level: int = 1) -> np.ndarray:
    """The measure as trec_eval -c has it from the two files, (n_queries,)."""
    with qrels_path.open() as qrels_file, run_path.open() as run_file:
        judged, run = pytrec_eval.parse_qrel(qrels_file), pytrec_eval.parse_run(run_file)
    results = pytrec_eval.RelevanceEvaluator(judged, {name}, relevance_level=level).evaluate(run)
    return np.array([results.get(query_id, {}).get(name.replace(".", "_"), 0.0) for query_id in qrels.query_ids])


MEASURES = [("recall@5", "recall.5"), ("recall@20", "recall.20"), ("precision@5", "P.5"), ("mrr@25", "recip_rank")]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
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
        run_path, binary, graded = (Path(folder) / name for name in ("a.run", "binary.qrels", "graded.qrels"))
        run_path.write_text("".join(lines[i] for i in rng.permutation(len(lines))))
        write_qrels(qrels, binary)
        level = write_qrels(qrels, graded, graded=True)
        found = run_to_ranking(read_run(run_path), qrels, depth=25)
        for ours, theirs in MEASURES:
            values = Measure.parse(ours).per_query(found.ranking, qrels)
            assert values == pytest.approx(expected(binary, run_path, theirs, qrels), abs=1e-9)
            assert values == pytest.approx(expected(graded, run_path, theirs, qrels, level=level), abs=1e-9)
        ndcg = Measure.parse("ndcg@10").per_query(found.ranking, qrels)
        assert ndcg == pytest.approx(expected(graded, run_path, "ndcg_cut.10", qrels), abs=1e-9)
        # map_cut divides by all relevant documents, map@k by those that k places can hold.
        share = qrels.n_relevant / np.minimum(5, qrels.n_relevant)
        assert Measure.parse("map@5").per_query(found.ranking, qrels) == pytest.approx(
            expected(binary, run_path, "map_cut.5", qrels) * share, abs=1e-9
        )
    assert (found.unknown_queries, found.missing_queries) == (1, 2)
    assert found.unknown_documents <= 5


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_our_ranking_comes_back_from_its_file_and_trec_eval_sees_the_same_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    qrels = random_qrels(rng, [0.0, 1.0, 2.0, 3.0])
    # Few distinct scores, so that ties are many; some so close that single precision sees none.
    levels = np.array([0.0, 1e-40, 0.3, 0.3 + 1e-10, -0.5, 1e30, -1e-45])
    scores = -np.sort(-rng.choice(levels, size=(qrels.n_queries, 12)), axis=1)
    ranking = np.stack([rng.permutation(qrels.n_documents)[:12] for _ in range(qrels.n_queries)])
    ranking[1, 7:] = -1
    ranking[2] = -1
    with tempfile.TemporaryDirectory() as folder:
        run_path, qrels_path = Path(folder) / "a.run", Path(folder) / "a.qrels"
        write_run(ranking, qrels, run_path, scores=scores)
        write_qrels(qrels, qrels_path)
        back = run_to_ranking(read_run(run_path), qrels, depth=12)
        assert back.ranking.tolist() == ranking.tolist()
        assert (back.unknown_queries, back.missing_queries, back.unknown_documents) == (0, 1, 0)
        values = Measure.parse("mrr@12").per_query(ranking, qrels)
        assert values == pytest.approx(expected(qrels_path, run_path, "recip_rank", qrels), abs=1e-9)


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
        raw, ours, judged = (Path(folder) / name for name in ("raw.run", "merged.run", "a.qrels"))
        raw.write_text("".join(f"{q} Q0 {d} 0 {s} raw\n" for q, found in scores.items() for d, s in found.items()))
        ours.write_text("".join(f"{q} Q0 {d} 0 {s} m\n" for q, found in merged.items() for d, s in found.items()))
        write_qrels(qrels, judged)
        ranking = run_to_ranking(read_run(raw), qrels, depth=25).ranking
        for name, theirs in MEASURES:
            values = Measure.parse(name).per_query(ranking, qrels)
            assert values == pytest.approx(expected(judged, ours, theirs, qrels), abs=1e-9)
        level = write_qrels(qrels, judged, graded=True)
        values = Measure.parse("ndcg@10").per_query(ranking, qrels)
        assert values == pytest.approx(expected(judged, ours, "ndcg_cut.10", qrels, level=level), abs=1e-9)


QRELS = qrels_of([("q1", "d1", 3), ("q1", "d2", 0), ("q2", "d2", 2), ("q2", "d3", 1), ("q3", "d1", 3)])


def test_a_run_file_reads_as_the_field_writes_it(tmp_path: Path) -> None:
    ranking = np.array([[2, 0], [1, -1], [-1, -1]])
    write_run(ranking, QRELS, tmp_path / "a.run", tag="mini")
    assert (tmp_path / "a.run").read_text().splitlines() == [
        "q1 Q0 d3 1 2.0 mini",
        "q1 Q0 d1 2 1.0 mini",
        "q2 Q0 d2 1 2.0 mini",
    ]
    assert read_run(tmp_path / "a.run").rows() == [
        ("q1", "d3", 1, 2.0, "mini"),
        ("q1", "d1", 2, 1.0, "mini"),
        ("q2", "d2", 1, 2.0, "mini"),
    ]


def test_scores_stay_what_they_are_in_single_precision_but_where_they_tie(tmp_path: Path) -> None:
    write_run(np.array([[0, 1, 2]] * 3), QRELS, tmp_path / "a.run", scores=[[0.7, 0.7, 0.1], [2, -1, -3], [0, 0, -0.0]])
    scores = read_run(tmp_path / "a.run")["score"].to_numpy().reshape(3, 3)
    below = np.nextafter(np.float32(0.7), np.float32(0))
    assert scores[0].astype(np.float32).tolist() == [np.float32(0.7), below, np.float32(0.1)]
    assert scores[1].tolist() == [2, -1, -3]
    tiny = np.finfo(np.float32).smallest_subnormal
    assert scores[2].astype(np.float32).tolist() == [0, -tiny, -2 * tiny]


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
    write_run(np.array([[2, 1, 0]] * 3), QRELS, tmp_path / "a.run")
    run = read_run(tmp_path / "a.run")
    assert run_to_ranking(run, QRELS, depth=2).ranking.tolist() == [[2, 1]] * 3
    assert run_to_ranking(run, QRELS).ranking.shape == (3, 100)
    with pytest.raises(ValueError, match="depth"):
        run_to_ranking(run, QRELS, depth=0)


def test_packed_files_hold_the_same_and_are_the_same_each_time(tmp_path: Path) -> None:
    ranking = np.array([[0, 1]] * 3)
    for name in ("a.run", "a.run.gz", "b.run.gz"):
        write_run(ranking, QRELS, tmp_path / name)
    assert gzip.decompress((tmp_path / "a.run.gz").read_bytes()) == (tmp_path / "a.run").read_bytes()
    assert (tmp_path / "a.run.gz").read_bytes() == (tmp_path / "b.run.gz").read_bytes()
    # The time of packing, which would make files of two seconds differ.
    assert (tmp_path / "a.run.gz").read_bytes()[4:8] == bytes(4)
    assert read_run(tmp_path / "a.run.gz").equals(read_run(tmp_path / "a.run"))
    write_qrels(QRELS, tmp_path / "a.qrels.gz")
    assert read_qrels(tmp_path / "a.qrels.gz").height == 5


def test_qrels_are_written_binary_or_in_integers_that_keep_the_proportions(tmp_path: Path) -> None:
    path = tmp_path / "a.qrels"
    assert write_qrels(QRELS, path) == 1
    assert path.read_text().splitlines() == ["q1 0 d1 1", "q1 0 d2 0", "q2 0 d2 1", "q2 0 d3 0", "q3 0 d1 1"]
    assert write_qrels(QRELS, path, graded=True) == 2
    assert read_qrels(path)["relevance"].to_list() == [3, 0, 2, 1, 3]


@pytest.mark.parametrize(
    ("scores", "integers", "level"),
    [
        ([1.0, 1.33, 3.0], [0, 33, 200], 200),
        ([1.0, 1.33333333, 2.66666667], [0, 1, 5], 5),
        ([1.0, 2.25, 2.75], [0, 5, 7], 7),
        ([1.0, 1.0 + 2 / np.pi, 3.0], [0, 3183, 10_000], 10_000),
    ],
)
def test_the_least_factor_that_makes_gains_integers_scales_them(
    scores: list[float], integers: list[int], level: int, tmp_path: Path
) -> None:
    qrels = qrels_of([("q", f"d{i}", score) for i, score in enumerate(scores)], scale=(1.0, 3.0), threshold=2.5)
    assert write_qrels(qrels, tmp_path / "a.qrels", graded=True) == level
    assert read_qrels(tmp_path / "a.qrels")["relevance"].to_list() == integers


@given(
    scores=st.lists(st.floats(1.0, 3.0), min_size=2, max_size=12),
    threshold=st.floats(1.0, 2.5),
    graded=st.booleans(),
    protocol=st.sampled_from(["per-query", "per-pair"]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_relevant_comes_back_from_a_qrels_file_by_its_level(
    scores: list[float], threshold: float, graded: bool, protocol: str
) -> None:
    scores = [3.0, *scores]
    rows = [(f"q{i % 3}", f"d{i}", score) for i, score in enumerate(scores)]
    qrels = qrels_of(rows, scale=(1.0, 3.0), threshold=threshold, protocol=protocol)
    with tempfile.TemporaryDirectory() as folder:
        level = write_qrels(qrels, Path(folder) / "a.qrels", graded=graded)
        back = read_qrels(Path(folder) / "a.qrels")
    relevant: dict[str, set[str]] = {}
    for query_id, document_id in back.filter(pl.col("relevance") >= level).select("query_id", "document_id").rows():
        relevant.setdefault(query_id, set()).add(document_id)
    assert level >= 1
    assert relevant == qrels.as_dicts()[2]
    assert back.height == len(qrels.judged_columns)


def test_gains_that_round_to_one_number_stay_apart_at_the_threshold(tmp_path: Path) -> None:
    scores = [1.0, 1.0 + np.sqrt(2), 2.5 - 1e-7, 2.5 + 1e-7, 3.0]
    qrels = qrels_of([("q", f"d{i}", score) for i, score in enumerate(scores)], scale=(1.0, 3.0), threshold=2.5)
    level = write_qrels(qrels, tmp_path / "a.qrels", graded=True)
    assert (read_qrels(tmp_path / "a.qrels")["relevance"] >= level).to_list() == [False, False, False, True, True]


def test_grades_of_which_the_lowest_is_relevant_are_refused(tmp_path: Path) -> None:
    qrels = qrels_of([("q", "d1", 1.0), ("q", "d2", 3.0)], scale=(1.0, 3.0), threshold=0.5)
    with pytest.raises(InputError, match="write binary qrels"):
        write_qrels(qrels, tmp_path / "a.qrels", graded=True)
    assert write_qrels(qrels, tmp_path / "a.qrels") == 1


@pytest.mark.parametrize("name", ["d 2", "d\u00a02", "d\t2", "d\x1c2", "d\u20282", "\ufeffd2"])
def test_ids_that_a_file_cannot_hold_are_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    qrels = qrels_of([("q1", "d1", 3), ("q1", name, 0)])
    with pytest.raises(InputError, match=r"a\.qrels: the document_id .* holds white space"):
        write_qrels(qrels, tmp_path / "a.qrels")
    with pytest.raises(InputError, match="the document_id"):
        write_run(np.array([[0, 1]]), qrels, tmp_path / "a.run")
    assert list(tmp_path.iterdir()) == []


def test_a_tag_of_two_words_or_none_is_refused(tmp_path: Path) -> None:
    for tag in ("my model", ""):
        with pytest.raises(InputError, match="the tag"):
            write_run(np.array([[0]] * 3), QRELS, tmp_path / "a.run", tag=tag)


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1 0 d1\n", "line 1: .* has 3 fields, not the 4"),
        ("q1 0 d1 1\nq1 0 d2 1.5\n", "line 2: the relevance '1.5' is not an integer"),
        ("q1 0 d1 1\nq1 0 d1 0\n", "line 2: .* second time"),
    ],
)
def test_malformed_qrels_are_refused_with_file_and_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.qrels").write_text(content)
    with pytest.raises(InputError, match=f"bad.qrels, {message}"):
        read_qrels(tmp_path / "bad.qrels")


def test_a_missing_file_and_a_run_for_other_queries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_run(tmp_path / "none.run")
    (tmp_path / "a.run").write_text("7 Q0 d1 1 2 x\n")
    with pytest.raises(InputError, match="none of the run's queries is in the qrels: it has '7', they have 'q1'"):
        run_to_ranking(read_run(tmp_path / "a.run"), QRELS)


def test_negative_relevance_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.qrels").write_text("q1 0 d1 -2\n", encoding="utf-8-sig")
    assert read_qrels(tmp_path / "a.qrels").rows() == [("q1", "d1", -2)]


@pytest.mark.parametrize(
    ("ranking", "scores", "message"),
    [
        ([[0], [1]], None, "does not fit 3 queries"),
        ([[3]] * 3, None, "outside the 3"),
        ([[-2]] * 3, None, "outside the 3"),
        ([[-1, 0]] * 3, None, "-1 before a document"),
        ([[0, 1]] * 3, [[1.0]] * 3, "do not fit a ranking"),
        ([[0, 1]] * 3, [[1.0, 2.0]] * 3, "rise"),
        ([[0, 1]] * 3, [[1.0, float("nan")]] * 3, "NaN"),
        ([[0, 1]] * 3, [[1e300, 1.0]] * 3, "too large"),
    ],
)
def test_a_ranking_that_is_none_is_refused(ranking, scores, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_run(np.array(ranking), QRELS, tmp_path / "a.run", scores=scores)


@pytest.mark.skipif(not HOME_DEPOT.is_dir(), reason="the Home Depot data is not here")
def test_home_depot_measures_the_same_from_files(tmp_path: Path) -> None:
    from nestling.judgments.sources import load_judgments

    judgments = load_judgments(str(HOME_DEPOT)).sample(2000, seed=1)
    qrels = Qrels.from_judgments(judgments, threshold=2.5)
    rng = np.random.default_rng(0)
    # Coarse vectors of which each document has a twin or more, so that scores tie.
    documents = rng.integers(-1, 2, size=(qrels.n_documents, 6)).astype(np.float32)
    ranking, scores = top_k(rng.normal(size=(qrels.n_queries, 6)).astype(np.float32), documents, 50)
    write_run(ranking, qrels, tmp_path / "a.run", scores=scores)
    level = write_qrels(qrels, tmp_path / "a.qrels", graded=True)
    assert run_to_ranking(read_run(tmp_path / "a.run"), qrels, depth=50).ranking.tolist() == ranking.tolist()
    for ours, theirs in [("recall@50", "recall.50"), ("ndcg@50", "ndcg_cut.50"), ("mrr@50", "recip_rank")]:
        values = Measure.parse(ours).per_query(ranking, qrels)
        theirs_values = expected(tmp_path / "a.qrels", tmp_path / "a.run", theirs, qrels, level=level)
        assert values == pytest.approx(theirs_values, abs=1e-9)
