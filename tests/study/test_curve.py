"""The learning curve: samples that nest, a sentence that follows from the figures, and going on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fixtures.tuning import FakeFit, small_experiment
from nestling.errors import InputError
from nestling.judgments.toolshed import generate
from nestling.study.curve import Point, curve, last_doubling, nested_sample, slope_per_doubling, verdict


def point(share: float, records: int, recall: float, seed: int = 0) -> Point:
    return Point(
        share, seed, records, records // 2, {"recall@10": 0.4, "mrr@10": 0.3}, {"recall@10": recall, "mrr@10": 0.5}
    )


def test_samples_are_nested_whole_queries_of_the_asked_size():
    train = generate(300, seed=0)
    keys = train.query_keys
    largest = keys.value_counts()["count"].max()
    before: set[tuple[str, str]] = set()
    for share in (0.1, 0.25, 0.5, 1.0):
        sample = nested_sample(train, share, seed=3)
        pairs = set(sample.frame.select("query_id", "document_id").iter_rows())
        assert before <= pairs
        assert share * 300 <= len(sample) < share * 300 + largest
        chosen = set(sample.query_keys)
        assert len(sample) == sum(key in chosen for key in keys)
        before = pairs
    assert len(before) == 300


def test_another_seed_draws_other_queries():
    train = generate(300, seed=0)
    assert nested_sample(train, 0.25, seed=0).fingerprint != nested_sample(train, 0.25, seed=1).fingerprint
    assert nested_sample(train, 0.25, seed=1).fingerprint == nested_sample(train, 0.25, seed=1).fingerprint


def test_the_slope_is_that_of_least_squares_over_doublings():
    assert slope_per_doubling([100, 200, 400], [0.5, 0.6, 0.7])[0] == pytest.approx(0.1)
    # By hand: x = 0, 1, 2 and y = 0, 0, 3 give sum((x - 1) * (y - 1)) / sum((x - 1) ** 2) = 3 / 2.
    assert slope_per_doubling([1, 2, 4], [0.0, 0.0, 3.0])[0] == pytest.approx(1.5)


def test_the_last_doubling_leaves_the_steep_beginning_out():
    points = [point(0.1, 100, 0.1), point(0.25, 250, 0.5), point(0.5, 500, 0.6), point(1.0, 1000, 0.6)]
    assert [p.share for p in last_doubling(points)] == [0.5, 1.0]
    assert [p.share for p in last_doubling(points[:2])] == [0.1, 0.25]


@pytest.mark.parametrize(
    ("recalls", "slope", "so"),
    [
        ((0.50, 0.60), 0.1, "more judgments would help"),
        ((0.60, 0.602), 0.002, "would bring little"),
        ((0.60, 0.55), -0.05, "do harm"),
    ],
)
def test_the_sentence_follows_from_the_figures(recalls: tuple[float, float], slope: float, so: str):
    found, said = verdict([point(0.1, 100, 0.2), point(0.5, 500, recalls[0]), point(1.0, 1000, recalls[1])])
    assert found == pytest.approx(slope)
    assert so in said
    assert f"From 500 to 1,000 training records recall@10 on dev changes by {slope:+.4f} for each doubling" in said
    assert said.count(".") == said.count("0.") + 1


def test_a_rise_within_the_spread_of_the_seeds_is_flat():
    spread = [point(0.5, 500, 0.5), point(0.5, 500, 0.6, 1), point(1.0, 1000, 0.52), point(1.0, 1000, 0.62, 1)]
    slope, said = verdict(spread)
    assert slope == pytest.approx(0.02)
    # By hand: residuals of 0.05 each, so sqrt(4 * 0.0025 / 2) / sqrt(4 * 0.25) = 0.0707, and twice that is 0.14.
    assert "flat (within 0.14)" in said


def test_a_real_curve_measures_each_share_and_leaves_table_sentence_and_picture(tiny_model_path, tmp_path):
    found = curve(small_experiment(tiny_model_path), shares=(1, 0.5), runs=tmp_path)
    assert [p.share for p in found.points] == [0.5, 1.0]
    train = pl.read_parquet(tmp_path / "tiny" / "split" / "train.parquet")
    assert found.points[1].records == train.height
    table = pl.read_parquet(found.folder / "curve.parquet")
    assert table.equals(found.results)
    assert table.select("share", "seed", "measure").unique().height == table.height == 4
    value = json.loads((found.folder / "curve.json").read_text(encoding="utf-8"))
    assert value["verdict"] == found.verdict
    assert np.isfinite(found.slope)
    names = {path.name for path in found.folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "curve.json",
        "curve.parquet",
        "curve.png",
        "curve.svg",
        "share-0.5-seed-0.json",
        "share-1-seed-0.json",
    }


@pytest.mark.usefixtures("without_pages")
def test_a_finished_share_is_not_trained_again_and_shares_and_seeds_may_be_added(
    tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    broken = FakeFit(break_at=1, error=KeyboardInterrupt())
    monkeypatch.setattr("nestling.training.trainer.fit", broken)
    with pytest.raises(KeyboardInterrupt):
        curve(small_experiment(tiny_model_path), shares=(0.5, 1), runs=tmp_path)
    fit = FakeFit()
    monkeypatch.setattr("nestling.training.trainer.fit", fit)
    curve(small_experiment(tiny_model_path), shares=(0.5, 1), runs=tmp_path)
    assert fit.works == broken.works[1:]
    found = curve(small_experiment(tiny_model_path), shares=(0.25, 0.5, 1), seeds=2, runs=tmp_path)
    assert len(fit.specs) == 1 + 4
    assert [spec.settings.seed for spec in fit.specs] == [0, 0, 1, 1, 1]
    assert len(found.points) == 6


@pytest.mark.usefixtures("without_pages")
def test_a_curve_with_other_settings_is_refused(tiny_model_path, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nestling.training.trainer.fit", FakeFit())
    curve(small_experiment(tiny_model_path), shares=(0.5, 1), runs=tmp_path)
    with pytest.raises(InputError, match=r"share-0.5-seed-0.json was made from other data or settings"):
        curve(small_experiment(tiny_model_path, training={"epochs": 2}), shares=(0.5, 1), runs=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": (0.5, 1.5)}, "above 0 and up to 1, not at 1.5"),
        ({"shares": (0, 1)}, "above 0 and up to 1, not at 0"),
        ({"shares": (1,)}, "two shares or more"),
        ({"seeds": 0}, "1 seed or more, not 0"),
    ],
)
def test_bad_shares_are_refused_before_anything_is_written(tiny_model_path: Path, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        curve(small_experiment(tiny_model_path), runs=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
