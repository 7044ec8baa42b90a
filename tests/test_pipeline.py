"""The whole study on the tiny model: what lies in the folder, what a second call redoes, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from nestling import pipeline
from nestling.errors import InputError
from nestling.experiment import Experiment
from nestling.experiment_files import load_experiment, make_experiment
from nestling.observer import Observer
from nestling.run_folder import RunFolder
from nestling.training.callbacks import TrainingProgress


class Recorder(Observer):
    """Remembers the stages and notes, and can die at a step of a training."""

    def __init__(self, *, die_at: int | None = None) -> None:
        self.stages: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.die_at = die_at

    def stage(self, name: str, detail: str = "") -> None:
        self.stages.append((name, detail))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def training(self, variant: str, progress: TrainingProgress) -> None:
        if progress.step == self.die_at:
            raise KeyboardInterrupt


def experiment(tiny: Path, **changes: object) -> Experiment:
    values = {
        "name": "tiny",
        "model": str(tiny),
        "data": {"records": 300},
        "training": {"epochs": 1, "batch_size": 16, "precision": "fp32", "checkpoint_seconds": 0},
        "variants": ["pretrained", "mnrl", "mnrl+matryoshka"],
        "evaluation": {"dims": [32, 8]},
    }
    return make_experiment({**values, **changes})


@pytest.fixture(scope="module")
def finished(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Run:
    return pipeline.run(experiment(tiny_model_path), runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copied(finished: pipeline.Run, tmp_path: Path) -> Path:
    """A finished run in a place of its own; returns the folder of runs."""
    shutil.copytree(finished.folder, tmp_path / "tiny")
    return tmp_path


def test_every_file_that_the_plan_names_is_there(finished: pipeline.Run):
    for name in (
        "experiment.yaml",
        "inspection.json",
        "scores.png",
        "scores.svg",
        "split/train.parquet",
        "split/dev.parquet",
        "split/test.parquet",
        "split/summary.json",
        "models/mnrl/modules.json",
        "models/mnrl+matryoshka/modules.json",
        "results.parquet",
        "results.json",
        "per_query.parquet",
        "comparisons.parquet",
        "slices.parquet",
        "rankings.parquet",
        "report.html",
        "evaluation/mnrl.json",
        "recall_at_10_by_dim.png",
        "recall_at_10_by_dim.svg",
        "mrr_at_10_by_dim.png",
        "log.jsonl",
    ):
        assert (finished.folder / name).is_file(), name
    assert not list(finished.folder.rglob("*.part*"))
    assert not list(finished.folder.rglob("checkpoint-*"))


def test_results_hold_every_variant_size_and_measure(finished: pipeline.Run):
    results = pl.read_parquet(finished.folder / "results.parquet")
    assert results.equals(finished.results)
    keys = results.select("variant", "dim", "measure").unique()
    # Three models and their three fusions at two sizes, BM25 twice at none; three measures.
    assert keys.height == results.height == (6 * 2 + 2) * 3
    assert results["value"].is_between(0, 1).all()
    assert (results["low"] <= results["value"]).all()
    assert (results["value"] <= results["high"]).all()


def test_every_variant_is_compared_with_the_pretrained_one_by_query(finished: pipeline.Run):
    comparisons = pl.read_parquet(finished.folder / "comparisons.parquet")
    assert comparisons.equals(finished.comparisons)
    assert set(comparisons["a"]) == {"pretrained"}
    assert comparisons.height == 7 * 3
    values = finished.results.filter(pl.col("dim").is_in([32, 0]))
    figures = {(row["variant"], row["measure"]): row["value"] for row in values.iter_rows(named=True)}
    for row in comparisons.iter_rows(named=True):
        expected = figures[row["b"], row["measure"]] - figures["pretrained", row["measure"]]
        assert row["difference"] == pytest.approx(expected)
        assert row["wins"] + row["ties"] + row["losses"] == finished.queries


def test_the_documents_on_top_are_kept_and_give_the_same_figures(finished: pipeline.Run):
    from nestling.evaluation.qrels import Qrels
    from nestling.judgments.split_files import read_split

    rankings = pl.read_parquet(finished.folder / "rankings.parquet")
    qrels = Qrels.from_judgments(read_split(finished.folder / "split").test, threshold=2.5)
    _, _, relevant = qrels.as_dicts()
    per_query = pl.read_parquet(finished.folder / "per_query.parquet")
    systems = rankings.select("variant", "dim").unique().rows()
    assert len(systems) == 6 * 2 + 2
    for variant, dim in systems:
        of_system = (pl.col("variant") == variant) & (pl.col("dim") == dim)
        figures = dict(per_query.filter(of_system).select("query_id", "recall@10").iter_rows())
        for (query,), top in rankings.filter(of_system).group_by("query_id"):
            assert top["rank"].to_list() == list(range(1, top.height + 1))
            assert top["score"].is_sorted(descending=True)
            found = len(relevant[query] & set(top["document_id"]))
            assert figures[query] == pytest.approx(found / len(relevant[query]))


def test_slices_cover_every_query_once_a_kind(finished: pipeline.Run):
    slices = pl.read_parquet(finished.folder / "slices.parquet")
    some = slices.filter((pl.col("variant") == "mnrl") & (pl.col("measure") == "recall@10"))
    assert some.height
    sums = some.group_by("slice").agg(pl.col("queries").sum())
    assert (sums["queries"] == finished.queries).all()


def test_results_are_the_means_of_the_figures_by_query(finished: pipeline.Run):
    per_query = pl.read_parquet(finished.folder / "per_query.parquet")
    means = per_query.group_by("variant", "dim").agg(pl.col("recall@10").mean())
    found = finished.results.filter(pl.col("measure") == "recall@10").join(means, on=["variant", "dim"])
    assert found.height == 14
    assert (found["value"] - found["recall@10"]).abs().max() < 1e-12


def test_the_json_says_what_the_figures_depend_on(finished: pipeline.Run):
    value = json.loads((finished.folder / "results.json").read_text(encoding="utf-8"))
    assert value["data"]["fingerprint"]
    assert value["versions"]["sentence-transformers"].startswith("6.")
    assert value["hardware"]["cores"] >= 1
    assert set(value["seconds"]) >= {"split", "train mnrl", "evaluate pretrained"}
    assert value["experiment"]["split"]["seed"] == 0
    assert len(value["results"]) == finished.results.height
    assert value["evaluation"]["mnrl"]["engine"] == "torch-fp32"
    assert set(value["evaluation"]["mnrl"]["fusions"]) == {"32 float32", "8 float32"}


def test_the_written_experiment_is_the_one_that_ran(finished: pipeline.Run):
    assert load_experiment(finished.folder / "experiment.yaml") == finished.experiment


def test_the_pretrained_row_is_the_stock_evaluators(finished: pipeline.Run, tiny_model):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    from nestling.evaluation.qrels import Qrels
    from nestling.judgments.split_files import read_split

    qrels = Qrels.from_judgments(read_split(finished.folder / "split").test, threshold=2.5)
    queries, corpus, relevant = qrels.as_dicts()
    stock = InformationRetrievalEvaluator(queries, corpus, relevant, truncate_dim=8)(tiny_model)
    row = finished.results.filter(
        (pl.col("variant") == "pretrained") & (pl.col("dim") == 8) & (pl.col("measure") == "recall@10")
    )
    assert row["value"].item() == pytest.approx(stock["cosine_recall@10"], abs=1e-6)


def test_a_second_call_redoes_nothing(copied: Path, tiny_model_path: Path):
    before = (copied / "tiny" / "models" / "mnrl" / "model.safetensors").stat().st_mtime_ns
    seen = Recorder()
    pipeline.run(experiment(tiny_model_path), runs=copied, observer=seen)
    assert [detail for name, detail in seen.stages if name not in ("inspect", "report")] == ["done before"] * 8
    assert (copied / "tiny" / "models" / "mnrl" / "model.safetensors").stat().st_mtime_ns == before


def test_a_new_variant_is_added_and_the_rest_is_kept(copied: Path, tiny_model_path: Path):
    seen = Recorder()
    wider = experiment(tiny_model_path, variants=["pretrained", "mnrl", "mnrl+matryoshka", "cosent"])
    run = pipeline.run(wider, runs=copied, observer=seen)
    assert [name for name, detail in seen.stages if detail != "done before"][1:] == [
        "train cosent",
        "evaluate cosent",
        "report",
    ]
    assert {"cosent", "cosent+bm25"} < set(run.results["variant"])
    assert run.results["variant"].n_unique() == 4 * 2 + 2


def test_other_settings_for_what_is_there_are_refused(copied: Path, tiny_model_path: Path):
    longer = experiment(tiny_model_path, training={"epochs": 2, "batch_size": 16})
    with pytest.raises(InputError, match=r"its model mnrl was made from other data or settings; .*--overwrite"):
        pipeline.run(longer, runs=copied)


def test_other_data_are_refused(copied: Path, tiny_model_path: Path):
    with pytest.raises(InputError, match="its split was made from other data or settings"):
        pipeline.run(experiment(tiny_model_path, data={"records": 310}), runs=copied)


def test_overwrite_makes_again_what_changed(copied: Path, tiny_model_path: Path):
    seen = Recorder()
    other = experiment(
        tiny_model_path,
        variants=["pretrained", "mnrl", {"recipe": "mnrl", "matryoshka": {"dims": [32, 4]}, "training": {"epochs": 2}}],
    )
    pipeline.run(other, runs=copied, overwrite=True, observer=seen)
    assert ("train mnrl", "done before") in seen.stages
    assert ("train mnrl+matryoshka", "") in seen.stages


def test_an_interrupted_run_goes_on_in_the_middle_of_the_training(tiny_model_path: Path, tmp_path: Path):
    two_epochs = experiment(
        tiny_model_path,
        variants=["mnrl"],
        training={"epochs": 3, "batch_size": 8, "precision": "fp32", "checkpoint_seconds": 0},
    )
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(two_epochs, runs=tmp_path, observer=Recorder(die_at=7))
    seen = Recorder()
    run = pipeline.run(two_epochs, runs=tmp_path, observer=seen)
    assert ("split", "done before") in seen.stages
    assert any("going on from its checkpoint at step 6" in note for note in seen.notes)
    assert set(run.results["variant"]) == {"mnrl", "mnrl+bm25", "bm25", "bm25-stemmed"}


def test_a_folder_in_use_is_refused(copied: Path, tiny_model_path: Path):
    with (
        RunFolder(copied / "tiny").locked(),
        pytest.raises(InputError, match="another nestling works in this folder"),
    ):
        pipeline.run(experiment(tiny_model_path), runs=copied)


def test_a_size_larger_than_the_model_is_refused_before_anything_is_written(tiny_model_path: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"size 384 is larger than the model's 32 dims"):
        pipeline.run(experiment(tiny_model_path, evaluation={"dims": [384, 8]}), runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_that_keeps_nothing_is_refused_before_anything_is_written(tiny_model_path: Path, tmp_path: Path):
    with pytest.raises(InputError, match="threshold 3 keeps no pair of 300"):
        pipeline.run(experiment(tiny_model_path, data={"records": 300, "threshold": 3}), runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_neither_half_a_file_nor_a_mark(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x.parquet"))

    with monkeypatch.context() as patched:
        patched.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(OSError, match="No space left on device"):
            pipeline.run(experiment(tiny_model_path), runs=tmp_path)
    assert not (tmp_path / "tiny" / "split").exists()
    assert "split" not in RunFolder(tmp_path / "tiny").state
    assert not list(tmp_path.rglob("*.part*"))
    assert pipeline.run(experiment(tiny_model_path), runs=tmp_path).results.height == 42
