"""The verdict's words follow from the figures: each branch, from tables whose outcome is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fixtures.study import make_study
from nestling.evaluation.cells import Cell
from nestling.evaluation.slices import SEEN
from nestling.report.changes import Change, outcome_of
from nestling.report.page_data import load_page_data
from nestling.report.verdict import Answer, verdict

FULL, SMALL = Cell(64), Cell(16)
N = 60


def share(found: int) -> list[float]:
    """Recall of `N` queries of which the first `found` are answered."""
    return [1.0] * found + [0.0] * (N - found)


def answers(tmp_path: Path, figures: dict[str, Any], variants: list[Any], **more: Any) -> dict[str, Answer]:
    given = verdict(load_page_data(make_study(tmp_path / "run", figures, variants=variants, pages=False, **more)))
    keys = ("tuning", "matryoshka", "bm25", "small", "ship")
    return dict(zip(keys, given, strict=True))


def two(pretrained: int, tuned: int) -> dict[str, Any]:
    return {"pretrained": {FULL: share(pretrained)}, "mnrl": {FULL: share(tuned)}}


BOTH = ["pretrained", "mnrl"]
DEV = {"mnrl": (0.5, 0.6)}


def test_a_gain_is_said_with_its_figures_in_percent(tmp_path: Path):
    given = answers(tmp_path, two(20, 40), BOTH, dev=DEV)["tuning"]
    assert given.word == "Yes"
    assert given.tone == "good"
    # 20 of 60 become 40 of 60, and MRR is half of that.
    assert "mnrl is better than pretrained: recall@10 0.3333 → 0.6667 (+100.0%, interval +" in given.text
    assert "MRR@10 0.1667 → 0.3333 (+100.0%" in given.text
    assert "p < .0001)" in given.text


def test_a_regression_is_called_one(tmp_path: Path):
    given = answers(tmp_path, two(40, 20), BOTH, dev={"mnrl": (0.5, 0.4)})
    assert given["tuning"].word == "No, it is a regression"
    assert given["tuning"].tone == "bad"
    assert "recall@10 0.6667 → 0.3333 (-50.0%" in given["tuning"].text
    assert "On dev mnrl ended below its base." in given["tuning"].text
    assert given["ship"].word == "pretrained"
    assert "made it worse" in given["ship"].text


def test_a_difference_that_may_be_chance_is_no_gain(tmp_path: Path):
    given = answers(tmp_path, two(30, 32), BOTH, dev=DEV)
    assert given["tuning"].word == "Not shown"
    assert "may be chance" in given["tuning"].text
    assert given["tuning"].text.count("not significant") == 2
    assert given["ship"].word == "pretrained"


def test_equal_figures_are_no_gain(tmp_path: Path):
    given = answers(tmp_path, two(30, 30), BOTH, dev=DEV)["tuning"]
    assert given.word == "No gain"
    assert "have the same figures" in given.text


def test_a_gain_in_one_measure_and_a_loss_in_the_other_is_mixed(tmp_path: Path):
    mrr = {"pretrained": {FULL: share(40)}, "mnrl": {FULL: share(20)}}
    given = answers(tmp_path, two(20, 40), BOTH, dev=DEV, mrr=mrr)
    assert given["tuning"].word == "Mixed"
    assert "gains recall@10 on pretrained but loses MRR@10" in given["tuning"].text
    assert given["ship"].word == "pretrained"


def test_a_gain_in_one_measure_alone_names_it(tmp_path: Path):
    mrr = {"pretrained": {FULL: share(20)}, "mnrl": {FULL: share(21)}}
    assert answers(tmp_path, two(20, 40), BOTH, dev=DEV, mrr=mrr)["tuning"].word == "Yes, in recall@10"


def test_the_variant_is_chosen_on_dev_not_on_test(tmp_path: Path):
    figures = {**two(20, 30), "graded": {FULL: share(60)}}
    dev = {"mnrl": (0.5, 0.7), "graded": (0.5, 0.6)}
    text = answers(tmp_path, figures, ["pretrained", "mnrl", "graded"], dev=dev)["tuning"].text
    assert text.startswith("mnrl ")
    assert "chosen among the trained ones on dev" in text


@pytest.mark.parametrize(
    ("variants", "word"), [(["pretrained"], "Not tried"), (["mnrl"], "Cannot be said")], ids=["untrained", "alone"]
)
def test_without_both_sides_nothing_is_said_of_training(tmp_path: Path, variants: list[str], word: str):
    given = answers(tmp_path, {variants[0]: {FULL: share(30)}, "bm25": {None: share(10)}}, variants)
    assert given["tuning"].word == word
    assert given["ship"].word == variants[0]


def nested(full: tuple[int, int], small: tuple[int, int]) -> dict[str, Any]:
    return {
        "pretrained": {FULL: share(10), SMALL: share(5)},
        "mnrl": {FULL: share(full[0]), SMALL: share(small[0])},
        "mnrl+matryoshka": {FULL: share(full[1]), SMALL: share(small[1])},
    }


@pytest.mark.parametrize(
    ("full", "small", "word", "tone"),
    [
        ((40, 40), (20, 40), "Pays at 16 dims", "good"),
        ((20, 40), (20, 40), "Pays at both ends", "good"),
        ((50, 20), (20, 40), "A trade", "open"),
        ((40, 41), (30, 31), "Makes no clear difference", "open"),
        ((40, 40), (40, 20), "Does not pay", "bad"),
        ((20, 40), (40, 20), "Pays at 64 dims only", "bad"),
        ((40, 20), (30, 30), "Does not pay", "open"),
    ],
)
def test_matryoshka_is_held_against_its_twin_at_both_ends(
    tmp_path: Path, full: tuple[int, int], small: tuple[int, int], word: str, tone: str
):
    dev = {"mnrl": (0.1, 0.6), "mnrl+matryoshka": (0.1, 0.5)}
    variants = ["pretrained", "mnrl", "mnrl+matryoshka"]
    given = answers(tmp_path, nested(full, small), variants, dev=dev)["matryoshka"]
    assert (given.word, given.tone) == (word, tone)
    assert "mnrl+matryoshka against mnrl, at 64 dims: recall@10" in given.text
    assert f"at 16 dims: recall@10 {small[0] / N:.4f} → {small[1] / N:.4f}" in given.text


def test_matryoshka_without_a_twin_is_not_told_apart_from_training(tmp_path: Path):
    figures = {name: cells for name, cells in nested((40, 40), (20, 40)).items() if name != "mnrl"}
    dev = {"mnrl+matryoshka": (0.1, 0.5)}
    given = answers(tmp_path, figures, ["pretrained", "mnrl+matryoshka"], dev=dev)["matryoshka"]
    assert given.word == "Not tried apart"
    assert "training and Matryoshka together" in given.text


def with_bm25(model: int, lexical: int, fusion: int | None) -> dict[str, Any]:
    figures: dict[str, Any] = {"pretrained": {FULL: share(5)}, "mnrl": {FULL: share(model)}}
    if fusion is not None:
        figures["mnrl+bm25"] = {FULL: share(fusion)}
        figures["pretrained+bm25"] = {FULL: share(fusion)}
    return {**figures, "bm25-stemmed": {None: share(lexical)}}


@pytest.mark.parametrize(
    ("model", "lexical", "fusion", "word", "told", "shipped"),
    [
        (40, 20, 55, "Yes", "is better than the model alone", "mnrl with BM25 added"),
        (40, 20, 41, "Yes", "shows no significant difference", "mnrl"),
        (40, 20, 20, "Yes", "is worse than the model alone", "mnrl"),
        (30, 31, 32, "Not shown", "shows no significant difference", "Stemmed BM25 alone"),
        (30, 31, 50, "Not shown", "is better than the model alone", "mnrl with BM25 added"),
        (20, 40, 41, "No, BM25 alone is better", "is better than the model alone", "Stemmed BM25 alone"),
        (20, 40, 60, "No, BM25 alone is better", "is better than the model alone", "mnrl with BM25 added"),
        (40, 20, None, "Yes", "was not measured", "mnrl"),
        (20, 40, None, "No, BM25 alone is better", "was not measured", "Stemmed BM25 alone"),
    ],
)
def test_bm25_is_told_plainly_and_decides_what_to_ship(
    tmp_path: Path, model: int, lexical: int, fusion: int | None, word: str, told: str, shipped: str
):
    given = answers(tmp_path, with_bm25(model, lexical, fusion), BOTH, dev=DEV)
    assert given["bm25"].word == word
    assert told in given["bm25"].text
    assert f"recall@10 {lexical / N:.4f} → {model / N:.4f}" in given["bm25"].text
    assert given["ship"].word == shipped


def test_where_bm25_is_better_in_one_measure_alone_that_is_named(tmp_path: Path):
    figures = with_bm25(30, 30, None)
    mrr = {"pretrained": {FULL: share(5)}, "mnrl": {FULL: share(10)}, "bm25-stemmed": {None: share(30)}}
    given = answers(tmp_path, figures, BOTH, dev=DEV, mrr=mrr)["bm25"]
    assert given.word == "No, BM25 alone is better in MRR@10"
    assert "better than mnrl in MRR@10: recall@10 0.5000 → 0.5000" in given.text


def test_the_smallest_that_keeps_enough_is_named_with_its_bytes(tmp_path: Path):
    cells = {
        FULL: share(50),
        Cell(32): share(50),
        Cell(32, "int8"): share(49),
        Cell(16): share(48),
        Cell(32, "binary"): share(30),
    }
    figures = {"pretrained": {FULL: share(20)}, "mnrl": cells}
    given = answers(tmp_path, figures, BOTH, dev=DEV)
    # 49 of 50 is 98 %; int8 takes 2 bytes for its scale, and 16 dims of float32 take 64 bytes and keep 96 %.
    assert given["small"].word == "34 bytes a vector"
    assert (
        "mnrl at 32 dims in int8 (34 bytes a vector), 7.53 times smaller than 256, keeps 98.0%" in given["small"].text
    )
    assert "the interval reaches below 98%" in given["small"].text
    assert "confirm it with nestling shrink" in given["small"].text
    assert "Store it at 32 dims in int8" in given["ship"].text
    for answer in (given["small"], given["ship"]):
        assert "icked on test, so what it keeps is optimistic: confirm it with nestling shrink" in answer.text


def test_of_more_than_fifty_cells_the_luckiest_is_not_shipped(tmp_path: Path):
    # One cell keeps 98 % by its mean alone; those of 32 dims and above answer the very same queries as full size.
    precisions: tuple[Any, ...] = ("float16", "int8", "int4")
    cells = {Cell(dim, one): share(50 if dim >= 32 else 20) for dim in (*range(8, 26), 32) for one in precisions}
    assert len(cells) > 50
    lucky = Cell(8, "int4")
    figures = {"pretrained": {FULL: share(20)}, "mnrl": {FULL: share(50), **cells, lucky: share(49)}}
    given = answers(tmp_path, figures, BOTH, dev=DEV)
    assert "Store it at 32 dims in int4" in given["ship"].text
    few = {cell: values for cell, values in figures["mnrl"].items() if cell.dim in (64, 32, 8)}
    given = answers(tmp_path / "few", {**figures, "mnrl": few}, BOTH, dev=DEV)
    assert "Store it at 8 dims in int4" in given["ship"].text


def test_where_nothing_smaller_keeps_enough_that_is_said(tmp_path: Path):
    figures = {"pretrained": {FULL: share(20)}, "mnrl": {FULL: share(50), SMALL: share(40)}}
    given = answers(tmp_path, figures, BOTH, dev=DEV)
    assert given["small"].word == "Not below full size"
    assert "No smaller embedding of mnrl keeps 98% of recall@10; the best, 16 dims in float32, keeps 80.0%" in (
        given["small"].text
    )
    assert "at its full size" in given["ship"].text
    assert "optimistic" not in given["ship"].text


def test_a_model_that_finds_nothing_has_nothing_to_keep(tmp_path: Path):
    given = answers(tmp_path, {"pretrained": {FULL: share(0), SMALL: share(0)}}, ["pretrained"])
    assert "nothing can be kept" in given["small"].text


def test_a_change_from_nothing_is_told_in_points():
    assert str(Change("recall@10", 0, 0.25, 0.1, 0.3, 0.01)) == (
        "recall@10 0.0000 → 0.2500 (+25.00 points, interval +10.00 to +30.00; p = .010)"
    )


def test_a_p_of_just_the_level_proves_nothing():
    gain, tie = Change("recall@10", 0.5, 0.6, 0, 0.2, 0.0499), Change("recall@10", 0.5, 0.6, 0, 0.2, 0.05)
    assert (gain.outcome, tie.outcome) == ("gain", "open")
    assert outcome_of([gain, tie]) == "gain"
    assert outcome_of([gain, Change("mrr@10", 0.6, 0.5, -0.2, 0, 0.01)]) == "mixed"


def test_a_split_that_shares_documents_has_a_caveat_with_the_figures_by_what_training_knew(tmp_path: Path):
    data = load_page_data(make_study(tmp_path / "run", two(20, 40), variants=BOTH, dev=DEV, pages=False))
    rows = [(SEEN, "all seen", 48, "mnrl", "recall@10", 0.75), (SEEN, "none seen", 12, "mnrl", "recall@10", 0.25)]
    columns = ["slice", "label", "queries", "variant", "measure", "value"]
    warned = {**data.study, "split": {**data.study["split"], "warning": "WARNING: sides share documents"}}
    found = verdict(replace(data, study=warned, slices=pl.DataFrame(rows, schema=columns, orient="row")))
    assert len(found) == len(verdict(data)) + 1
    assert (found[-1].question, found[-1].word, found[-1].tone) == (
        "Does it hold for new documents?",
        "Not shown",
        "bad",
    )
    assert found[-1].text == (
        "WARNING: sides share documents. By how many of their relevant documents training knew, mnrl has recall@10 "
        "0.7500 on 48 queries (all seen); recall@10 0.2500 on 12 queries (none seen)."
    )
