"""Loading, sampling and inspecting judgments, and the threshold that is settled for them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import nestling
from nestling.config.experiment import DataSettings
from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.judgments.toolshed import generate
from nestling.study.data import load


def scored(*scores: float) -> Judgments:
    frame = pl.DataFrame({"query": ["q"] * len(scores), "document": [f"d{n}" for n in range(len(scores))]})
    return Judgments.from_frame(frame.with_columns(pl.Series("score", scores)))


def test_the_threshold_is_2_5_on_a_scale_of_1_to_3():
    assert settle_threshold(scored(1.0, 2.0, 3.0), None) == 2.5


def test_on_another_scale_the_threshold_is_asked_for_with_the_dip_as_a_hint():
    with pytest.raises(InputError, match=r"on a scale of 0 to 1 give the threshold .*; the scores dip near 0\.50"):
        settle_threshold(scored(0.0, 0.0, 1.0, 1.0), None)


def test_a_threshold_that_keeps_every_pair_is_refused():
    with pytest.raises(InputError, match="threshold 0 keeps every pair of 2"):
        settle_threshold(scored(1.0, 2.0), 0)


def test_scores_that_are_all_alike_are_all_relevant_unless_a_threshold_says_otherwise():
    assert settle_threshold(scored(1.0, 1.0), None) == 0.5
    assert settle_threshold(scored(7.0, 7.0), None) == 3.5
    assert settle_threshold(scored(1.0, 1.0), 0) == 0
    with pytest.raises(InputError, match="threshold 2 keeps no pair of 2"):
        settle_threshold(scored(1.0, 1.0), 2)
    with pytest.raises(InputError, match="on a scale of -1 to 0 give the threshold"):
        settle_threshold(scored(0.0, 0.0), None)


def test_a_threshold_on_the_scale_may_keep_every_pair():
    frame = pl.DataFrame({"query": ["q", "q"], "document": ["a", "b"], "score": [3.0, 57.0]})
    clicks = Judgments.from_frame(frame, scale=(0, 57))
    assert settle_threshold(clicks, 0) == 0
    with pytest.raises(InputError, match=r"keeps every pair of 2 .*; where all are relevant, give --scale 0 57"):
        settle_threshold(Judgments.from_frame(frame), 0)


def test_a_sample_is_the_same_for_the_same_seed(tmp_path: Path):
    generate(300, seed=0).frame.write_parquet(tmp_path / "shop.parquet")
    settings = DataSettings(source=str(tmp_path / "shop.parquet"), records=50)
    one, again, other = (load(settings, seed=seed) for seed in (1, 1, 2))
    assert len(one) == 50
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_inspection_counts_what_is_there(tiny_model_path: Path):
    judgments = generate(200, seed=0)
    found = nestling.inspect(judgments, model=str(tiny_model_path))
    assert found.queries == judgments.frame["query"].str.to_lowercase().n_unique()
    assert found.documents == judgments.frame["document_id"].n_unique()
    assert found.kept == (judgments.frame["score"] > 2.5).sum()
    assert sum(bar.count for bar in found.bars) == 200
    assert found.per_query[0] <= found.per_query[2] <= found.per_query[4]
