"""The stage that measures: models, BM25, fusions and other engines' runs, on the tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import nestling
from nestling.config.experiment import EvaluationSettings
from nestling.errors import InputError
from nestling.evaluation.benchmark import Benchmark
from nestling.evaluation.qrels import Qrels
from nestling.judgments.split import Split
from nestling.judgments.table import Judgments
from nestling.judgments.toolshed import generate
from nestling.progress import Observer

SMALL = EvaluationSettings(dims=(32, 8), measures=("recall@10", "mrr@10"))


@pytest.fixture(scope="module")
def split() -> Split:
    return nestling.split(generate(300, seed=0))


def value(found: nestling.Evaluation, variant: str, **cell: object) -> float:
    rows = found.results.filter(pl.col("variant") == variant, pl.col("measure") == "recall@10")
    for name, wanted in cell.items():
        rows = rows.filter(pl.col(name) == wanted)
    return float(rows["value"].item())


def test_models_bm25_and_fusions_stand_in_one_table(split: Split, tiny_model_path: Path):
    found = nestling.evaluate(split, {"tiny": str(tiny_model_path)}, settings=SMALL)

    names = found.results["variant"].unique(maintain_order=True).to_list()
    assert names == ["tiny", "tiny+bm25", "bm25", "bm25-stemmed"]
    assert value(found, "tiny+bm25", dim=32) >= value(found, "tiny", dim=32)
    assert set(found.comparisons["a"]) == {"tiny"}


def test_how_many_documents_have_the_text_of_another_is_said_in_a_note(split: Split, tiny_model_path: Path):
    copies = split.test.frame.head(3).with_columns(pl.col("document_id") + "-copy")
    doubled = Judgments.from_frame(pl.concat([split.test.frame, copies]), scale=split.test.scale)
    notes: list[str] = []
    observer = Observer()
    observer.note = notes.append  # type: ignore[method-assign]
    models = {"tiny": str(tiny_model_path)}

    found = nestling.evaluate(doubled, models, settings=SMALL, threshold=2.5, observer=observer)

    n = copies["document_id"].n_unique()
    assert f"{n} documents have the text of another one and count as one with it" in notes
    once = nestling.evaluate(split.test, models, settings=SMALL, threshold=2.5)
    assert found.results.equals(once.results)


def test_a_table_without_a_dev_side_gets_no_fusion(split: Split, tiny_model_path: Path):
    found = nestling.evaluate(split.test, {"tiny": str(tiny_model_path)}, settings=SMALL)

    assert found.results["variant"].unique(maintain_order=True).to_list() == ["tiny", "bm25", "bm25-stemmed"]


def test_int8_engines_are_calibrated_on_the_training_side_and_tried_on_dev(split: Split):
    benchmark = Benchmark.of(split, SMALL, 2.5)
    sample = benchmark.sample
    assert benchmark.dev is not None
    assert sample.documents == split.train.frame["document"].to_list()
    assert sample.judged is not None
    assert sample.judged[:2] == (benchmark.dev.queries, benchmark.dev.documents)
    counts = [side.n_queries + side.n_documents for side in (benchmark.test, benchmark.dev)]
    assert sample.texts == sum(counts)

    alone = Benchmark.of(split.test, SMALL, 2.5).sample
    assert (alone.documents, alone.judged, alone.texts) == (benchmark.test.documents, None, counts[0])


def test_the_grid_has_a_row_for_each_cell(split: Split, tiny_model_path: Path):
    settings = SMALL.model_copy(
        update={"precisions": ("float32", "int8", "binary"), "rotations": ("none", "trained"), "oversampling": (4,)}
    )
    found = nestling.evaluate(split, {"tiny": str(tiny_model_path)}, settings=settings)

    alone = found.results.filter(pl.col("variant") == "tiny", pl.col("measure") == "recall@10")
    # Without rotation 32 float32 as it is and 5 more cells twice; with it the same but for 32 float32.
    assert alone.height == (1 + 5 * 2) + 5 * 2
    assert alone.filter(pl.col("precision") == "int8", pl.col("dim") == 8)["bytes"].unique().to_list() == [10]
    full = value(found, "tiny", dim=32, precision="float32", oversampling=0)
    assert value(found, "tiny", dim=32, precision="int8", rotation="none", oversampling=4) == pytest.approx(
        full, abs=0.02
    )


def test_another_engines_run_stands_in_the_table(split: Split, tiny_model_path: Path, tmp_path: Path):
    qrels = Qrels.from_judgments(split.test, threshold=2.5)
    rows = np.repeat(np.arange(qrels.n_queries), qrels.n_relevant)
    lines = [
        f"{qrels.query_ids[row]} Q0 {qrels.document_ids[column]} 0 1 oracle"
        for row, column in zip(rows, qrels.relevant_columns, strict=True)
    ]
    (tmp_path / "oracle.run").write_text("\n".join(lines))

    found = nestling.evaluate(
        split, {"tiny": str(tiny_model_path)}, settings=SMALL, runs={"oracle": tmp_path / "oracle.run"}
    )

    assert value(found, "oracle") == pytest.approx(found.ceiling)
    row = found.comparisons.filter(pl.col("b") == "oracle", pl.col("measure") == "recall@10")
    assert row["losses"].item() == 0


def test_a_missing_run_is_one_clear_line(split: Split, tiny_model_path: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.run"):
        nestling.evaluate(split, {"tiny": str(tiny_model_path)}, settings=SMALL, runs={"x": tmp_path / "gone.run"})


def test_a_second_call_with_a_cache_encodes_nothing(
    split: Split, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    models = {"tiny": str(tiny_model_path)}
    first = nestling.evaluate(split, models, settings=SMALL, cache=tmp_path / "cache")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("nestling.models.torch_encoder.embed", refuse)
    again = nestling.evaluate(split, models, settings=SMALL, cache=tmp_path / "cache")
    assert again.results.equals(first.results)


@pytest.mark.parametrize(
    ("field", "wrong", "said"),
    [
        ("precisions", ("int3",), "unknown precision 'int3'"),
        ("oversampling", (1,), "must be 2 or more"),
        ("engine", "steam", "unknown engine 'steam'"),
        ("baselines", ("bm26",), "bm25"),
    ],
)
def test_a_wrong_setting_is_named(field: str, wrong: object, said: str):
    with pytest.raises(ValueError, match=said):
        EvaluationSettings.model_validate({field: wrong})


def test_float32_is_always_measured():
    assert EvaluationSettings(precisions=("binary", "int8")).precisions == ("float32", "int8", "binary")


def test_the_per_pair_protocol_makes_a_query_of_every_positive(tiny_model_path: Path):
    judgments = generate(200, seed=0)
    settings = EvaluationSettings(dims=(32,), protocol="per-pair")
    found = nestling.evaluate(judgments, {"tiny": str(tiny_model_path)}, settings=settings)
    assert found.results["queries"].unique().to_list() == [len(judgments.above(2.5))]
