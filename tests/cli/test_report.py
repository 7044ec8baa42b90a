"""The verb report as a user meets it: one run or several, tables, JSON, and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fixtures.study import make_study
from nestling.cli.app import main
from nestling.config.run_folder import RunFolder
from nestling.evaluation.cells import Cell

N = 20


def share(found: int) -> list[float]:
    return [1.0] * found + [0.0] * (N - found)


def study(path: Path, found: int, **rest: Any) -> RunFolder:
    figures = {"pretrained": {Cell(64): share(10)}, "mnrl": {Cell(64): share(found)}}
    options = {"variants": ["pretrained", "mnrl"], "dev": {"mnrl": (0.5, found / N)}, "pages": False, "rankings": False}
    return make_study(path, figures, **{**options, **rest})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished")
    study(path / "a", 14)
    study(path / "b", 18)
    study(path / "other", 14, queries=[f"other {n}" for n in range(N)])
    return path


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "runs")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["report", *(str(argument) for argument in arguments)])
    except SystemExit as left:
        code = int(left.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_run_prints_the_path_of_its_page(capsys, runs: Path):
    code, out, _ = call(capsys, "a", "--runs", runs)
    assert code == 0
    assert f"page        {runs / 'a' / 'report.html'}" in out
    assert (runs / "a" / "report.html").is_file()
    assert not (runs / "comparison.html").exists()


def test_one_run_as_json_is_results_json_and_the_path(capsys, runs: Path):
    code, out, _ = call(capsys, runs / "a", "--json")
    assert code == 0
    stored = json.loads((runs / "a" / "results.json").read_text(encoding="utf-8"))
    assert json.loads(out) == {**stored, "path": str(runs / "a" / "report.html")}


def test_several_runs_print_a_table_in_80_columns_and_the_path(capsys, runs: Path):
    code, out, _ = call(capsys, "a", "b", "--runs", runs)
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    # 4 and 8 queries gained of 20: p = 2/16 and twice 2/256.
    assert [row for row in rows if row[0]] == [
        ["pretrained", "64", "0.5000", "0.2500"],
        ["a: mnrl", "64", "0.7000  +40.0%", "0.3500  +40.0%"],
        ["b: mnrl", "64", "0.9000  +80.0%", "0.4500  +80.0%"],
    ]
    proofs = [row[2].partition(" ")[2] for row in rows if not row[0]]
    assert proofs == ["", "p = .125", "p = .016"]
    assert "Which run is best? b: mnrl on dev, not shown on test." in out
    assert lines[-1].startswith(f"page        {runs / 'comparison.html'}")
    assert (runs / "comparison.html").is_file()


def test_several_runs_as_json(capsys, runs: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    code, out, _ = call(capsys, runs / "a", "b", "--runs", runs, "--json", "--out", page)
    assert code == 0
    found = json.loads(out)
    assert found["path"] == str(page)
    assert page.is_file()
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert [run["dev_recall@10"] for run in found["runs"]] == [0.7, 0.9]
    assert found["best_on_dev"] == "b: mnrl"
    assert found["reference"] == "pretrained"
    assert found["settings"] == found["environment"] == {}
    assert found["variants"][0] == {"name": "pretrained", "variant": "pretrained", "runs": ["a", "b"]}
    pair = next(row for row in found["pairs"] if row["measure"] == "recall@10")
    assert (pair["a"], pair["b"], pair["wins"], pair["p_holm"]) == ("a: mnrl", "b: mnrl", 4, 0.125)
    values = {row["variant"]: row["value"] for row in found["results"] if row["measure"] == "recall@10"}
    assert values == pytest.approx({"pretrained": 0.5, "a: mnrl": 0.7, "b: mnrl": 0.9})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "report needs at least one run"),
        (["a", "c"], "there is no run c, here or in"),
        (["a", "a"], "is given twice; give each run once"),
        (["a", "other"], "runs a and other measured other test queries"),
        (["a", "--out", "x.html"], "--out is for the comparison of several runs"),
        (["a", "b", "--out", "mine.html"], "mine.html exists and is no comparison of runs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, runs: Path, tmp_path: Path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("mine", encoding="utf-8")
    code, out, err = call(capsys, *arguments, "--runs", runs)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert out == ""
    assert (tmp_path / "mine.html").read_text(encoding="utf-8") == "mine"
    assert not (runs / "comparison.html").exists()


def test_names_send_no_markup_and_no_escapes_to_the_terminal(capsys, runs: Path):
    path = runs / "b" / "results.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["experiment"]["name"] = "[red]b\x1b[31m"
    path.write_text(json.dumps(found), encoding="utf-8")
    code, out, _ = call(capsys, "a", "b", "--runs", runs)
    assert code == 0
    assert "[red]b\N{REPLACEMENT CHARACTER}[31m: mnrl on dev" in " ".join(out.split())
    assert "│ [red]b\N{REPLACEMENT CHARACTER}[31m: mnrl │" in out
    assert "\x1b" not in out
