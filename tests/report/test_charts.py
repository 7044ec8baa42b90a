"""The pictures: every value is drawn, both files are written, and texts cannot break out."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest

from nestling.evaluation.grid import SCHEMA
from nestling.judgments.inspection import inspect_judgments
from nestling.judgments.toolshed import generate
from nestling.report.charts import _cycled, measure_by_dim, save, score_histogram, short_source, spread

VALUES = {("pretrained", 384): 0.5, ("pretrained", 48): 0.25, ("<b>&tuned", 384): 0.6, ("<b>&tuned", 48): 0.54}


def row(variant: str, dim: int, value: float, *cell: object) -> tuple[object, ...]:
    where = cell or (("float32" if dim else ""), "none", 0)
    return (variant, dim, *where, 4 * dim, "recall@10", value, value - 0.01, value + 0.02, 100)


def table(*rows: tuple[object, ...]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA, orient="row")


@pytest.fixture
def results() -> pl.DataFrame:
    return table(*(row(variant, dim, value) for (variant, dim), value in VALUES.items()))


def layers(chart: object) -> list[tuple[dict[str, object], list[dict[str, object]]]]:
    """Return the mark of each layer, and the rows of its data, wherever altair has put them."""
    spec = chart.to_dict()
    sets = spec.get("datasets", {})
    datas = [layer.get("data", spec.get("data")) for layer in spec["layer"]]
    return [
        (layer["mark"], data["values"] if "values" in data else sets[data["name"]])
        for layer, data in zip(spec["layer"], datas, strict=True)
    ]


def of(chart: object, mark: str) -> list[list[dict[str, object]]]:
    return [rows for kind, rows in layers(chart) if kind["type"] == mark]


def test_the_chart_holds_every_value_of_its_measure_and_no_other(results: pl.DataFrame):
    other = results.with_columns(pl.lit("mrr@10").alias("measure"))
    chart = measure_by_dim(pl.concat([results, other]), "recall@10", subtitle="")
    for mark in ("line", "point"):
        (values,) = of(chart, mark)
        assert {(row["variant"], row["dim"]): row["value"] for row in values} == VALUES
        assert len(values) == len(VALUES)


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
    spec = measure_by_dim(results, "recall@10", subtitle="").to_dict()
    encoding = next(layer["encoding"] for layer in spec["layer"] if layer["mark"]["type"] == "line")
    for channel in ("color", "shape", "strokeDash"):
        ranges = [str(value) for value in encoding[channel]["scale"]["range"]]
        assert len(ranges) == len(set(ranges)) == 2


def test_many_variants_never_look_alike():
    names = [f"v{n}" for n in range(16)]
    looks = list(zip(_cycled(list("abcdefgh"), names), _cycled(list("12345678"), names, turn=1), strict=True))
    assert len(set(looks)) == 16


@pytest.mark.parametrize("cell", [("int8", "none", 0), ("float32", "pca", 0), ("float32", "none", 4)])
def test_cells_that_are_not_plain_are_not_drawn(results: pl.DataFrame, cell: tuple[object, ...]):
    chart = measure_by_dim(pl.concat([results, table(row("pretrained", 384, 0.9, *cell))]), "recall@10", subtitle="")
    assert all(drawn["value"] != 0.9 for rows in of(chart, "line") for drawn in rows)


def test_intervals_are_bands_and_bars_in_the_colour_of_their_variant(results: pl.DataFrame):
    chart = measure_by_dim(results, "recall@10", subtitle="")
    for mark in ("area", "rule"):
        pretrained, tuned = of(chart, mark)
        assert [(r["dim"], r["low"], r["high"]) for r in pretrained] == [(384, 0.49, 0.52), (48, 0.24, 0.27)]
        assert [r["low"] for r in tuned] == [pytest.approx(0.59), pytest.approx(0.53)]
        colours = [kind["color"] for kind, _ in layers(chart) if kind["type"] == mark]
        assert colours == ["#6b7280", "#0072B2"]


def test_where_a_table_has_no_intervals_none_is_drawn(results: pl.DataFrame, tmp_path: Path):
    bare = results.with_columns(pl.lit(None, pl.Float64).alias("low"), pl.lit(None, pl.Float64).alias("high"))
    chart = measure_by_dim(bare, "recall@10", subtitle="")
    assert not any(rows for mark in ("area", "rule") for rows in of(chart, mark))
    assert save(chart, tmp_path / "picture")[0].exists()


def test_bm25_is_a_rule_across_with_its_name_and_no_line(results: pl.DataFrame, tmp_path: Path):
    chart = measure_by_dim(
        pl.concat([results, table(row("bm25", 0, 0.41), row("<i>bm25", 0, 0.405))]), "recall@10", subtitle=""
    )
    assert {drawn["variant"] for rows in of(chart, "line") for drawn in rows} == {"pretrained", "<b>&tuned"}
    lexical = [rows[0] for kind, rows in layers(chart) if kind["type"] == "text"]
    assert {r["name"]: r["value"] for r in lexical} == {"bm25": 0.41, "<i>bm25": 0.405}
    # The plot is 380 pixels high and spans 0.24 to 0.62, so that 15 pixels are 0.015.
    labels = {r["name"]: r["label"] for r in lexical}
    assert labels["bm25"] - labels["<i>bm25"] == pytest.approx(0.015)
    dashes = [kind["strokeDash"] for kind, _ in layers(chart) if kind["type"] == "rule" and "strokeDash" in kind]
    assert len(dashes) == 2
    assert dashes[0] != dashes[1]
    _, svg = save(chart, tmp_path / "picture")
    texts = {element.text for element in ElementTree.parse(svg).iter() if element.tag.endswith("text")}
    assert {"bm25", "<i>bm25", "pretrained"} <= texts


def test_fusions_with_bm25_are_not_drawn(results: pl.DataFrame):
    both = pl.concat([results, table(row("pretrained+bm25", 384, 0.7), row("odd+bm25", 384, 0.3))])
    chart = measure_by_dim(both, "recall@10", subtitle="")
    assert {r["variant"] for rows in of(chart, "line") for r in rows} == {"pretrained", "<b>&tuned", "odd+bm25"}


def test_one_size_of_one_variant_can_be_drawn_with_distinct_ticks(tmp_path: Path):
    _, svg = save(measure_by_dim(table(row("tuned", 384, 0.85)), "recall@10", subtitle=""), tmp_path / "picture")
    texts = [element.text for element in ElementTree.parse(svg).iter() if element.tag.endswith("text")]
    ticks = [text for text in texts if text and text.startswith("0.")]
    assert len(ticks) == len(set(ticks)) > 3


def test_nothing_plain_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no variant has recall@10"):
        measure_by_dim(table(row("tuned", 384, 0.5, "int8", "none", 0)), "recall@10", subtitle="")


def test_values_are_spread_with_the_same_mean():
    assert spread([1.0, 5.0], 2.0) == [1.0, 5.0]
    assert spread([1.0, 2.0], 2.0) == [0.5, 2.5]
    assert spread([], 2.0) == []


def test_the_histogram_marks_threshold_and_dip(tmp_path: Path):
    judgments = generate(500, seed=0)
    inspection = inspect_judgments(
        judgments,
        threshold=2.5,
        count_tokens=lambda texts, _: pl.Series(texts).str.len_chars().to_numpy(),
        max_tokens=99,
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
