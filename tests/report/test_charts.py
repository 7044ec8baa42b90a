"""The pictures: every value is drawn, both files are written, and texts cannot break out."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest

from nestling.judgments.inspection import inspect_judgments
from nestling.judgments.toolshed import generate
from nestling.report.charts import measure_by_dim, save, score_histogram, short_source

VALUES = {("pretrained", 384): 0.5, ("pretrained", 48): 0.25, ("<b>&tuned", 384): 0.6, ("<b>&tuned", 48): 0.54}


@pytest.fixture
def results() -> pl.DataFrame:
    rows = [(variant, dim, "recall@10", value) for (variant, dim), value in VALUES.items()]
    return pl.DataFrame(rows, schema=["variant", "dim", "measure", "value"], orient="row")


def test_the_chart_holds_every_value_of_its_measure_and_no_other(results: pl.DataFrame):
    other = results.with_columns(pl.lit("mrr@10").alias("measure"))
    chart = measure_by_dim(pl.concat([results, other]), "recall@10", subtitle="").to_dict()
    values = next(iter(chart["datasets"].values())) if "datasets" in chart else chart["data"]["values"]
    assert {(row["variant"], row["dim"]): row["value"] for row in values} == VALUES


def test_png_and_svg_are_written_and_well_formed_with_hostile_names(results: pl.DataFrame, tmp_path: Path):
    png, svg = save(measure_by_dim(results, "recall@10", subtitle="</svg><script>"), tmp_path / "picture")
    assert png.read_bytes().startswith(b"\x89PNG")
    texts = [element.text for element in ElementTree.parse(svg).iter() if element.tag.endswith("text")]
    assert "<b>&tuned" in texts
    assert "</svg><script>" in texts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.png", "picture.svg"]


def test_axes_and_sizes_are_named(results: pl.DataFrame, tmp_path: Path):
    _, svg = save(measure_by_dim(results, "recall@10", subtitle=""), tmp_path / "picture")
    texts = {element.text for element in ElementTree.parse(svg).iter() if element.tag.endswith("text")}
    assert {"recall@10", "embedding size (dims, log scale)", "384", "48", "pretrained"} <= texts


def test_variants_differ_in_colour_shape_and_dash(results: pl.DataFrame):
    encoding = measure_by_dim(results, "recall@10", subtitle="").to_dict()["layer"][0]["encoding"]
    for channel in ("color", "shape", "strokeDash"):
        ranges = [str(value) for value in encoding[channel]["scale"]["range"]]
        assert len(ranges) == len(set(ranges)) == 2


def test_the_histogram_marks_threshold_and_dip(tmp_path: Path):
    judgments = generate(500, seed=0)
    inspection = inspect_judgments(
        judgments, threshold=2.5, count_tokens=lambda texts: pl.Series(texts).str.len_chars().to_numpy(), max_tokens=99
    )
    _, svg = save(score_histogram(inspection), tmp_path / "scores")
    texts = {element.text for element in ElementTree.parse(svg).iter() if element.tag.endswith("text")}
    assert "threshold 2.5" in texts
    assert any(text and text.startswith("dip 2.") for text in texts)


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("home-depot:../shared/data/home-depot", "home-depot"),
        ("toolshed, 6,000 records, seed 0", "toolshed, 6,000 records, seed 0"),
        ("/srv/shop/judgments.csv", "judgments.csv"),
        ("C:\\shop\\judgments.csv", "judgments.csv"),
        ("shop/", "shop"),
        ("owner/name", "name"),
    ],
)
def test_pictures_name_a_source_without_its_folders(source: str, short: str):
    assert short_source(source) == short
