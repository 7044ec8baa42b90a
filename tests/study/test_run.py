"""The whole study on the tiny model: what lies in the folder, what a second call redoes, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fixtures.qrels import as_dicts
from fixtures.tiny import build_tiny_model
from nestling.config.experiment import DataSettings, EvaluationSettings, Experiment
from nestling.config.run_folder import RunFolder
from nestling.config.yaml_files import load_experiment, make_experiment
from nestling.errors import InputError
from nestling.judgments.split_files import read_split
from nestling.judgments.toolshed import generate
from nestling.progress import Observer, TrainingProgress
from nestling.report import tables
from nestling.study import run as pipeline
from nestling.study.data import load


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


def test_models_of_different_sizes_are_measured_each_at_its_own_by_default(tiny_model_path: Path, tmp_path: Path):
    small = build_tiny_model(tmp_path, hidden=20)
    variants = ["pretrained", {"name": "small", "recipe": "pretrained", "base": str(small)}]
    variants += [{"name": "small-trained", "recipe": "mnrl", "base": str(small), "matryoshka": {}}]
    done = pipeline.run(experiment(tiny_model_path, variants=variants, evaluation={}), runs=tmp_path / "runs")

    sizes = done.results.filter(pl.col("dim") > 0).group_by("variant").agg(pl.col("dim").unique().sort(descending=True))
    own = {"pretrained": [32, 16, 8, 4], "small": [20, 10, 5, 2], "small-trained": [20, 10, 5, 2]}
    assert dict(sizes.iter_rows()) == own | {f"{name}+bm25": dims for name, dims in own.items()}
    assert set(tables.full_size(done.results, reference=done.reference)["dim"]) == {32, 20, 0}
    card = (done.folder / "models" / "small-trained" / "README.md").read_text(encoding="utf-8")
    assert "Matryoshka loss at 20, 10, 5, 2 dims" in card
    page = done.report.read_text(encoding="utf-8")
    assert "small, 20 dims" in page
    assert "small, 2 dims" in page


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
    _, _, relevant = as_dicts(qrels)
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
    queries, corpus, relevant = as_dicts(qrels)
    stock = InformationRetrievalEvaluator(queries, corpus, relevant, truncate_dim=8)(tiny_model)
    row = finished.results.filter(
        (pl.col("variant") == "pretrained") & (pl.col("dim") == 8) & (pl.col("measure") == "recall@10")
    )
    assert row["value"].item() == pytest.approx(stock["cosine_recall@10"], abs=1e-6)


@pytest.mark.usefixtures("without_pages")
def test_a_second_call_redoes_nothing(copied: Path, tiny_model_path: Path):
    before = (copied / "tiny" / "models" / "mnrl" / "model.safetensors").stat().st_mtime_ns
    seen = Recorder()
    pipeline.run(experiment(tiny_model_path), runs=copied, observer=seen)
    assert [detail for name, detail in seen.stages if name not in ("inspect", "report")] == ["done before"] * 8
    assert (copied / "tiny" / "models" / "mnrl" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.usefixtures("without_pages")
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


@pytest.mark.usefixtures("without_pages")
def test_overwrite_makes_again_what_changed(copied: Path, tiny_model_path: Path):
    seen = Recorder()
    other = experiment(
        tiny_model_path,
        variants=["pretrained", "mnrl", {"recipe": "mnrl", "matryoshka": {"dims": [32, 4]}, "training": {"epochs": 2}}],
    )
    pipeline.run(other, runs=copied, overwrite=True, observer=seen)
    assert ("train mnrl", "done before") in seen.stages
    assert ("train mnrl+matryoshka", "") in seen.stages


@pytest.mark.usefixtures("without_pages")
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


@pytest.mark.usefixtures("without_pages")
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


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries and the documents that were clicked, without a score."""
    path = tmp_path_factory.mktemp("clicks") / "clicks.csv"
    generate(300, seed=0).above(2.5).frame.select("query", "document_id", "document").write_csv(path)
    return path


@pytest.fixture(scope="module")
def clicked(
    clicks: Path, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pipeline.Run, Recorder]:
    seen = Recorder()
    once = {"training": {"epochs": 1}}
    chosen = experiment(
        tiny_model_path,
        data={"source": str(clicks)},
        variants=[
            *("pretrained", "mnrl", "mnrl+matryoshka"),
            *({"recipe": recipe, **once} for recipe in ("graded", "distilled", "static", "adapter")),
        ],
        evaluation={"dims": [32]},
        training={"epochs": 1, "batch_size": 16, "precision": "fp32"},
    )
    with pytest.MonkeyPatch.context() as patched:
        # Steps of a rotation, which shall only be made here, not be good; and no estimate of the time.
        patched.setattr("nestling.retrieval.trained_rotation.STEPS", 10)
        patched.setattr("nestling.study.run.plan", lambda *_: {})
        return pipeline.run(chosen, runs=tmp_path_factory.mktemp("clicked"), observer=seen), seen


def test_every_recipe_that_needs_no_grades_is_trained_on_positives_alone(clicked: tuple[pipeline.Run, Recorder]):
    run, seen = clicked
    assert {"mnrl", "mnrl+matryoshka", "graded", "distilled", "static", "adapter"} < set(run.results["variant"])
    assert run.results["value"].is_between(0, 1).all()
    assert "no score column: every pair counts as relevant" in seen.notes
    study = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
    assert (study["threshold"], study["inspection"]["share"]) == (0.5, 1.0)
    assert [bar["count"] for bar in study["inspection"]["bars"]] == [study["inspection"]["records"]]


def test_the_reports_say_that_there_was_no_score_column(clicked: tuple[pipeline.Run, Recorder]):
    for name in ("report.html", "report.md"):
        text = (clicked[0].folder / name).read_text(encoding="utf-8")
        assert "no score column: every pair counts as relevant." in text


def test_the_split_of_positives_alone_is_evaluated_and_inspected_without_a_threshold(
    clicked: tuple[pipeline.Run, Recorder], clicks: Path, tiny_model_path: Path
):
    import nestling

    only = EvaluationSettings(dims=(32,), baselines=(), fusion=False, measures=("ndcg@10",))
    found = nestling.evaluate(clicked[0].folder / "split", {"tiny": str(tiny_model_path)}, settings=only)
    expected = clicked[0].results.filter(pl.col("variant") == "pretrained", pl.col("measure") == "ndcg@10")
    assert found.results["value"].item() == pytest.approx(expected["value"].item())
    assert nestling.inspect(str(clicks), model=str(tiny_model_path)).kept == len(
        load(DataSettings(source=str(clicks)), seed=0)
    )


@pytest.mark.parametrize("recipe", ["cosine", "cosent"])
def test_recipes_that_need_scores_refuse_positives_alone_before_anything_is_written(
    clicks: Path, tiny_model_path: Path, tmp_path: Path, recipe: str
):
    chosen = experiment(tiny_model_path, data={"source": str(clicks)}, variants=["mnrl", recipe])
    with pytest.raises(InputError, match=r"cosine and cosent learn from scores that differ, and here every pair has 1"):
        pipeline.run(chosen, runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_dense_data_shares_documents_and_says_so_everywhere(
    tiny_model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
):
    rng = np.random.default_rng(0)
    rows = [
        (f"drill {query} saw", f"steel door {document} paint", 3.0 if place < 2 else 1.0)
        for query in range(120)
        for place, document in enumerate(rng.choice(100, 4, replace=False))
    ]
    path = tmp_path / "dense.parquet"
    pl.DataFrame(rows, schema=["query", "document", "score"], orient="row").write_parquet(path)
    seen = Recorder()
    chosen = experiment(
        tiny_model_path, data={"source": str(path)}, variants=["pretrained", "mnrl"], evaluation={"dims": [32]}
    )
    run = pipeline.run(chosen, runs=tmp_path, observer=seen)
    split = read_split(run.folder / "split")
    assert (split.method, split.dropped, split.leaks()) == ("queries-only", 0, [])
    warning = split.warning or ""
    assert warning in seen.notes
    assert any(record.levelname == "WARNING" and warning in record.message for record in caplog.records)
    for name in ("report.html", "report.md", "models/mnrl/README.md"):
        assert warning in (run.folder / name).read_text(encoding="utf-8"), name
    slices = pl.read_parquet(run.folder / "slices.parquet")
    known = set(split.train.frame["document_id"])
    if not known >= set(split.test.above(2.5).frame["document_id"]):
        assert "relevant documents in training" in set(slices["slice"])
    again = Recorder()
    request.getfixturevalue("without_pages")
    pipeline.run(chosen, runs=tmp_path, observer=again)
    assert warning in again.notes
