"""What a search of settings and a learning curve say on the page."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from fixtures.study import make_study
from nestling.config.run_folder import RunFolder
from nestling.evaluation.cells import Cell
from nestling.report.page import write_pages
from nestling.report.page_tuning import findings

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><script>alert(1)</script><path d="M0 0H9"/></svg>'


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = make_study(tmp_path / "run", {"pretrained": {Cell(8): [1.0, 0.0]}}, variants=["pretrained"], pages=False)
    made.tuning.mkdir()
    made.curve.mkdir()
    pl.DataFrame(
        {
            "trial": [0, 1, 2],
            "state": ["complete", "complete", "pruned"],
            "dev_recall@10": [0.5, 0.625, 0.9],
            "seconds": [1.0, 1.0, 1.0],
            "reason": ["", "", "slow"],
            "by_epoch": [[0.5], [0.625], [0.9]],
            "learning_rate": [1e-4, 0.00123456, 1e-2],
            "max_seq_length": [None, 64, 128],
        }
    ).write_parquet(made.tuning / "trials.parquet")
    for path in (made.tuning / "trials.svg", made.curve / "curve.svg"):
        path.write_text(SVG)
    (made.curve / "curve.json").write_text(json.dumps({"variant": "mnrl", "verdict": "more <b> would help."}))
    return made


def test_the_best_complete_trial_and_the_curves_verdict_are_told_with_their_pictures(folder: RunFolder):
    search, curve = findings(folder)
    assert search.text == (
        "3 trials, 1 of them ended early. The best, trial 1, has recall@10 0.6250 on dev with "
        "learning_rate 0.00123, max_seq_length 64."
    )
    assert curve.text == "mnrl on growing shares of the training data. more <b> would help."
    assert [name for name, _ in (*search.pictures, *curve.pictures)] == ["trials", "curve"]
    html = write_pages(folder).read_text()
    assert "more &lt;b&gt; would help." in html
    assert html.count('aria-label="Search of settings: trials"') == 2
    assert "alert(1)" not in html


def test_the_mean_over_sizes_is_called_so(folder: RunFolder):
    path = folder.tuning / "trials.parquet"
    pl.read_parquet(path).rename({"dev_recall@10": "dev_recall@10_mean"}).write_parquet(path)
    assert "has recall@10 (mean of sizes) 0.6250 on dev with" in findings(folder)[0].text


def test_a_run_without_them_has_no_such_section(tmp_path: Path):
    made = make_study(tmp_path / "run", {"pretrained": {Cell(8): [1.0, 0.0]}}, variants=["pretrained"], pages=False)
    assert 'id="tuning"' not in write_pages(made).read_text()


def test_damaged_side_tables_are_left_out_and_the_page_is_still_written(folder: RunFolder):
    (folder.tuning / "trials.parquet").write_bytes(b"no parquet")
    (folder.curve / "curve.json").write_text("{")
    assert findings(folder) == []
    assert 'id="tuning"' not in write_pages(folder).read_text()
