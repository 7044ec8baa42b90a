"""The verbs tune and curve as a user meets them: tables within 80 columns, JSON alone, paths that exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclopts import App

from fixtures.tuning import FakeFit
from nestling.cli import tune as cli_tuning
from nestling.config.yaml_files import load_experiment
from nestling.errors import InputError

pytest.importorskip("optuna")


@pytest.fixture
def call(tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a verb on 300 records with the tiny model and stand-in trainings; return standard output."""
    monkeypatch.setattr("nestling.training.trainer.fit", FakeFit())
    app = App(name="nestling", result_action="return_value")
    app.command(cli_tuning.tune)
    app.command(cli_tuning.curve)

    def run(verb: str, *options: str) -> str:
        shared = ["toolshed", "--records", "300", "--runs", str(tmp_path), "--set", f"model={tiny_model_path}"]
        app([verb, *shared, "--set", "evaluation.dims=[32,8]", *options], exit_on_error=False, print_error=False)
        return capsys.readouterr().out

    return run


def test_tune_ends_with_the_table_and_the_experiment_to_run_next(call, tmp_path: Path):
    out = call("tune", "--trials", "3")
    table = out[: out.index("file ")]
    assert "Best trials of mnrl" in table
    assert max(map(len, table.splitlines())) <= 80
    best = out.splitlines()[-1].removeprefix("next        nestling run ")
    assert load_experiment(Path(best)).name == "toolshed-tuned"
    for line in out.splitlines():
        if line.startswith(("file", "picture")):
            assert Path(line.split(maxsplit=1)[1]).is_file()


def test_tune_as_json_prints_the_trials_alone(call):
    value = json.loads(call("tune", "--trials", "2", "--json"))
    assert [trial["number"] for trial in value["trials"]] == [0, 1]
    assert value["best"]["dev_recall@10"] == max(trial["value"] for trial in value["trials"])


def test_curve_ends_with_the_table_its_sentence_and_the_paths(call):
    out = call("curve", "--shares", "0.5,1", "--variant", "mnrl+matryoshka")
    assert "Learning curve of mnrl+matryoshka" in out
    assert "for each doubling" in " ".join(out.split())
    assert out.splitlines()[-1].endswith("curve.png")


def test_curve_as_json_prints_the_points_alone(call):
    value = json.loads(call("curve", "--shares", "0.5,1", "--json"))
    assert [point["share"] for point in value["points"]] == [0.5, 1.0]


def test_shares_that_are_no_numbers_are_one_line(call):
    with pytest.raises(InputError, match="'half': give numbers with commas between"):
        call("curve", "--shares", "half")
