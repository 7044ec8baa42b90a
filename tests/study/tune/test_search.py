"""A search as its user meets it: what it leaves, how it goes on, who may share it, and what it refuses."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.context import BaseContext
from pathlib import Path

import polars as pl
import pytest

from fixtures.tuning import SPACE, FakeFit, small_experiment, work
from nestling.config.training import value_of
from nestling.config.yaml_files import load_experiment
from nestling.errors import InputError
from nestling.progress import Observer
from nestling.study import run
from nestling.study.tune.search import tune
from nestling.study.tune.space import DEFAULT_SPACE, load_space, make_space

pytest.importorskip("optuna")


class Recorder(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def stage(self, name: str, detail: str = "") -> None:
        self.heard.append(f"{name} {detail}".strip())

    def note(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, without_pages: None) -> FakeFit:
    fake = FakeFit()
    monkeypatch.setattr("nestling.training.trainer.fit", fake)
    return fake


def search(tiny: Path, runs: Path, trials: int, **options):
    changes = options.pop("changes", {})
    return tune(
        small_experiment(tiny, **changes),
        trials=trials,
        space=make_space(options.pop("space", SPACE)),
        runs=runs,
        **options,
    )


def test_a_real_search_ends_with_an_experiment_that_has_the_best_trials_settings(tiny_model_path, tmp_path):
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "schedule": {"choices": ["linear", "cosine"]}}
    changes = {"training": {"epochs": 2, "batch_size": 16, "precision": "fp32"}}
    found = search(tiny_model_path, tmp_path, 3, space=space, changes=changes)
    tuned = load_experiment(found.folder / "best.yaml")
    assert tuned == found.experiment
    assert tuned.name == "tiny-tuned"
    settings = tuned.training_of(tuned.variants[1])
    assert {name: value_of(settings, name) for name in space} == found.best.params
    assert settings.batch_size == 16
    assert [list(trial.by_epoch) for trial in found.trials if trial.state == "complete"] == [[1, 2]] * 3
    assert found.best.value == max(trial.value for trial in found.trials if trial.state == "complete")
    assert sorted(path.name for path in found.folder.iterdir() if not path.name.startswith("study")) == [
        "best.yaml",
        "trials.parquet",
        "trials.png",
        "trials.svg",
    ]


def test_the_split_is_the_runs_own_and_a_run_goes_on_from_it(tiny_model_path, tmp_path, fit: FakeFit):
    search(tiny_model_path, tmp_path, 1)
    before = (tmp_path / "tiny" / "split" / "train.parquet").stat().st_mtime_ns
    run.run(small_experiment(tiny_model_path, variants=["pretrained"]), runs=tmp_path)
    assert (tmp_path / "tiny" / "split" / "train.parquet").stat().st_mtime_ns == before


def test_the_table_holds_every_trial_and_setting(tiny_model_path, tmp_path, fit: FakeFit):
    found = search(tiny_model_path, tmp_path, 4)
    table = pl.read_parquet(found.folder / "trials.parquet")
    assert table["trial"].to_list() == [0, 1, 2, 3]
    assert table["dev_recall@10"].to_list() == [trial.value for trial in found.trials]
    assert table["learning_rate"].to_list() == [spec.settings.learning_rate for spec in fit.specs]


def test_a_matryoshka_variant_is_searched_by_the_mean_over_its_sizes(tiny_model_path, tmp_path, fit: FakeFit):
    found = search(tiny_model_path, tmp_path, 4, variant="mnrl+matryoshka")
    table = pl.read_parquet(found.folder / "trials.parquet")
    assert "dev_recall@10" not in table.columns
    assert table["dev_recall@10_mean"].to_list() == [trial.value for trial in found.trials]
    assert found.best.params["learning_rate"] == max(spec.settings.learning_rate for spec in fit.specs)
    assert found.before == 0.02


def test_the_first_trial_has_the_experiments_own_settings(tiny_model_path, tmp_path, fit: FakeFit):
    found = search(tiny_model_path, tmp_path, 1)
    assert found.trials[0].params == {"learning_rate": 1e-4, "epochs": 1}


def test_the_same_call_again_adds_no_trial(tiny_model_path, tmp_path, fit: FakeFit):
    first = search(tiny_model_path, tmp_path, 3)
    again = search(tiny_model_path, tmp_path, 3)
    assert len(fit.specs) == 3
    assert again == first


@pytest.mark.usefixtures("without_pages")
def test_one_workers_search_is_repeatable_and_a_broken_one_tries_the_same(
    tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    tried = []
    for name, breaks in (("a", None), ("b", 4), ("c", 7)):
        monkeypatch.setattr("nestling.training.trainer.fit", FakeFit(break_at=breaks))
        if breaks:
            with pytest.raises(RuntimeError, match="killed"):
                search(tiny_model_path, tmp_path / name, 8)
            monkeypatch.setattr("nestling.training.trainer.fit", FakeFit())
        tried.append([(trial.params, trial.value) for trial in search(tiny_model_path, tmp_path / name, 8).trials])
    assert tried[0] == tried[1] == tried[2]
    assert len({str(params) for params, _ in tried[0]}) == 8


@pytest.mark.usefixtures("without_pages")
@pytest.mark.parametrize("error", [RuntimeError("killed"), KeyboardInterrupt()])
def test_a_broken_trial_is_done_again_where_its_checkpoints_lie(
    tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    broken = FakeFit(break_at=1, error=error)
    monkeypatch.setattr("nestling.training.trainer.fit", broken)
    with pytest.raises(type(error)):
        search(tiny_model_path, tmp_path, 3)
    assert broken.works[1].is_dir()
    again = FakeFit()
    monkeypatch.setattr("nestling.training.trainer.fit", again)
    found = search(tiny_model_path, tmp_path, 3)
    assert again.works[0] == broken.works[1]
    assert again.specs[0].settings == broken.specs[1].settings
    assert len(found.trials) == 3
    assert not list(found.folder.glob("trial-*"))


@pytest.mark.usefixtures("without_pages")
def test_settings_that_kill_their_worker_again_and_again_are_given_up(
    tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    search_once = lambda: search(tiny_model_path, tmp_path, 2)  # noqa: E731
    monkeypatch.setattr("nestling.training.trainer.fit", FakeFit())
    search(tiny_model_path, tmp_path, 1)
    for _ in range(3):
        deadly = FakeFit(break_at=0)
        monkeypatch.setattr("nestling.training.trainer.fit", deadly)
        with pytest.raises(RuntimeError):
            search_once()
    fake = FakeFit()
    monkeypatch.setattr("nestling.training.trainer.fit", fake)
    found = search_once()
    assert [trial.state for trial in found.trials] == ["complete", "complete"]
    assert fake.specs[0].settings != deadly.specs[0].settings


@pytest.mark.usefixtures("without_pages")
def test_a_poor_trial_is_pruned_after_its_first_epoch(tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch):
    calls = 0

    def falling(settings: object) -> float:
        nonlocal calls
        calls += 1
        return 0.9 if calls <= 4 else 0.1

    fake = FakeFit(falling)
    monkeypatch.setattr("nestling.training.trainer.fit", fake)
    space = {"learning_rate": SPACE["learning_rate"]}
    found = search(tiny_model_path, tmp_path, 6, space=space, changes={"training": {"epochs": 3}})
    assert [trial.state for trial in found.trials] == ["complete"] * 4 + ["pruned"] * 2
    assert list(found.trials[4].by_epoch) == [1]
    assert "pruned after epoch 1 at dev recall@10 0.0667" in found.trials[4].reason
    assert found.best.value == 0.9


@pytest.mark.usefixtures("without_pages")
def test_a_long_training_is_not_held_against_shorter_ones(tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nestling.training.trainer.fit", FakeFit(lambda settings: 0.9 if settings.epochs == 1 else 0.5))
    found = search(
        tiny_model_path, tmp_path, 8, space={"epochs": {"choices": [1, 3]}, **{"warmup": {"low": 0, "high": 0.5}}}
    )
    assert {trial.state for trial in found.trials if trial.params["epochs"] == 3} == {"complete"}


@pytest.mark.usefixtures("without_pages")
def test_settings_that_cannot_be_trained_are_recorded_and_the_search_goes_on(
    tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "nestling.training.trainer.fit", FakeFit(break_at=1, error=InputError("the training loss is nan: it diverged"))
    )
    found = search(tiny_model_path, tmp_path, 3)
    assert [trial.state for trial in found.trials] == ["complete", "pruned", "complete"]
    assert found.trials[1].reason == "the training loss is nan: it diverged"
    assert found.trials[1].value is None


def test_a_search_in_which_nothing_can_be_trained_ends_soon_and_says_why(
    tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    def unfit(*args: object, **kwargs: object) -> None:
        raise InputError("no positive pair")

    monkeypatch.setattr("nestling.training.trainer.fit", unfit)
    with pytest.raises(InputError, match="none of 3 trials could be trained: no positive pair"):
        search(tiny_model_path, tmp_path, 20)


@pytest.fixture(scope="module")
def processes() -> BaseContext:
    """Processes of their own that share their imports: each is forked from one that has made them."""
    if os.name != "posix":
        pytest.skip("needs fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nestling.study.tune.workers", "nestling.report.charts", "vl_convert", "jinja2"])
    return context


def test_two_workers_do_the_asked_number_of_trials_in_all(tiny_model_path, tmp_path, processes: BaseContext):
    together, trainings = processes.Barrier(2), processes.SimpleQueue()
    workers = [
        processes.Process(target=work, args=(tiny_model_path, tmp_path, 6, 0.5, together, trainings)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert {trainings.get() for _ in range(6)} == {worker.pid for worker in workers}
    assert trainings.empty()
    table = pl.read_parquet(tmp_path / "tiny" / "tuning" / "trials.parquet")
    assert table.height == 6
    assert table["learning_rate"].n_unique() == 6


def test_a_trial_whose_worker_was_killed_is_taken_over(
    tiny_model_path, tmp_path, fit: FakeFit, monkeypatch: pytest.MonkeyPatch, processes: BaseContext
):
    trainings = processes.SimpleQueue()
    killed = processes.Process(target=work, args=(tiny_model_path, tmp_path, 2, 600, None, trainings))
    killed.start()
    assert trainings.get() == killed.pid
    time.sleep(0.2)
    killed.kill()
    killed.join()
    monkeypatch.setattr("nestling.study.tune.workers.GRACE_SECONDS", 1)
    found = search(tiny_model_path, tmp_path, 2)
    assert len(found.trials) == 2
    assert {"learning_rate": 1e-4, "epochs": 1} in [trial.params for trial in found.trials]


def test_a_search_of_other_data_settings_or_space_is_refused(tiny_model_path, tmp_path, fit: FakeFit):
    search(tiny_model_path, tmp_path, 1)
    with pytest.raises(InputError, match="holds a search with other data, settings or space"):
        search(tiny_model_path, tmp_path, 1, changes={"training": {"epochs": 2}})
    with pytest.raises(InputError, match="holds a search with other data, settings or space"):
        search(tiny_model_path, tmp_path, 1, space={"epochs": {"low": 1, "high": 2}})
    with pytest.raises(InputError, match="its split was made from other data or settings"):
        search(tiny_model_path, tmp_path, 1, changes={"data": {"records": 290}})


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tiny_model_path, tmp_path, fit: FakeFit):
    mine = tmp_path / "mine.csv"
    mine.write_text("query,document\na,b", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine.csv is no storage of a search, or damaged"):
        search(tiny_model_path, tmp_path, 1, storage=mine)
    assert mine.read_text(encoding="utf-8") == "query,document\na,b"


def test_importance_takes_ten_complete_trials_and_finds_the_setting_that_matters(
    tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nestling.training.trainer.fit", FakeFit())
    seen = Recorder()
    space = {"learning_rate": SPACE["learning_rate"], "warmup": {"low": 0.0, "high": 0.5}}
    assert search(tiny_model_path, tmp_path, 3, space=space, observer=seen).importance == {}
    assert "no picture of importance: 3 complete trials, and it takes 10" in seen.heard
    found = search(tiny_model_path, tmp_path, 14, space=space)
    assert next(iter(found.importance)) == "learning_rate"
    assert sum(found.importance.values()) == pytest.approx(1)
    assert (found.folder / "importance.png").is_file()


def test_without_optuna_the_line_says_what_to_install(tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "nestling.study.tune.workers", raising=False)
    monkeypatch.delattr("nestling.study.tune.workers", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'nestling\[tune\]'"):
        search(tiny_model_path, tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_is_not_trained_is_refused_before_anything_is_written(tiny_model_path, tmp_path):
    for name in ("pretrained", "nope"):
        with pytest.raises(InputError, match=f"tiny trains no variant '{name}'; it trains mnrl, mnrl\\+matryoshka"):
            search(tiny_model_path, tmp_path, 1, variant=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a space maps settings to values"),
        ("[1, 2]", "a space maps settings to values"),
        ("epoch: {low: 1, high: 2}", "epoch: unknown key; did you mean 'epochs'?"),
        ("prefix_weight: {low: 1, high: 2}", "prefix_weight: was taken out"),
        ("preset: {choices: [study]}", "preset: no training setting"),
        ("epochs: 3", "epochs: give {low: A, high: B}"),
        ("epochs: {low: 1}", "epochs: give {low: A, high: B}"),
        ("epochs: {low: 3, high: 1}", "epochs: low 3 is above high 1"),
        ("epochs: {low: 0, high: 1}", "epochs: input should be greater than 0, not 0"),
        ("learning_rate: {low: 0, high: 1, log: true}", "learning_rate: low must be above 0 where log is true"),
        ("learning_rate: {low: small, high: 1}", "learning_rate: low must be a number, not 'small'"),
        ("schedule: {choices: []}", "schedule: choices needs a list of values"),
        ("schedule: {choices: [linear, sideways]}", "not 'sideways'"),
        ("batch_size: {choices: [32, [64]]}", "batch_size: a choice is a number, a text"),
        ("batch_size: {choices: [32, 32]}", "batch_size: 32 is there twice"),
        ("epochs: {low: 1", "no valid YAML"),
    ],
)
def test_a_bad_space_is_one_line_that_names_file_and_setting(tmp_path, text: str, message: str):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_space(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_space_file_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file or directory; give a search space"):
        load_space(tmp_path / "nope.yaml")


def test_numbers_without_a_dot_are_numbers_and_whole_ends_make_whole_values(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("learning_rate: {low: 1e-5, high: 1e-3, log: true}\nepochs: {low: 1, high: 5}", encoding="utf-8")
    rate, epochs = load_space(path)
    assert (rate.low, rate.high, rate.log) == (1e-5, 1e-3, True)
    assert rate.position(1e-4) == pytest.approx(0.5)
    assert 3.0 in epochs
    assert 2.5 not in epochs


def test_the_default_space_is_valid_and_holds_the_default_settings(tiny_model_path):
    from nestling.config.training import TrainingSettings

    for dimension in make_space(DEFAULT_SPACE):
        assert value_of(TrainingSettings(), dimension.name) in dimension, dimension.name
