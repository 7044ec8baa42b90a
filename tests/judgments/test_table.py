"""The rules that clean judgments, each with a table small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.judgments.identity import normalise
from nestling.judgments.table import Cleaning, Judgments


def table(*rows: tuple[str, str, float], **columns: list[str]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=["query", "document", "score"], orient="row")
    return frame.with_columns(pl.Series(name, values) for name, values in columns.items())


def test_identity_ignores_case_width_and_runs_of_white_space():
    assert normalise("  ＡBC\u00a0 Straße\n") == "abc strasse"


def test_pairs_that_differ_only_in_case_and_spaces_are_merged_and_counted():
    judgments = Judgments.from_frame(table(("Saw", "Hand saw", 3.0), ("saw ", "hand  saw", 3.0)))
    assert len(judgments) == 1
    assert judgments.cleaning == Cleaning(read=2, duplicates=1)


def test_conflicting_scores_of_a_pair_become_their_mean():
    judgments = Judgments.from_frame(table(("saw", "hand saw", 1.0), ("saw", "hand saw", 2.0)), scale=(1, 3))
    assert judgments.frame["score"].to_list() == [1.5]
    assert judgments.cleaning.conflicts == 1


def test_empty_texts_and_scores_outside_the_scale_are_dropped_and_counted():
    frame = table(("saw", " \t", 2.0), ("", "hand saw", 2.0), ("saw", "hand saw", 9.0), ("saw", "bow saw", 2.0))
    judgments = Judgments.from_frame(frame, scale=(1, 3))
    assert judgments.frame["document"].to_list() == ["bow saw"]
    assert judgments.cleaning == Cleaning(read=4, empty=2, out_of_scale=1)
    assert judgments.cleaning.kept == 1


def test_a_document_id_with_several_texts_keeps_the_longest():
    frame = table(("saw", "hand saw", 2.0), ("bow saw", "hand saw, 20 in.", 3.0), document_id=["7", "7"])
    judgments = Judgments.from_frame(frame)
    assert judgments.frame["document"].unique().to_list() == ["hand saw, 20 in."]
    assert judgments.cleaning.retitled == 1


def test_documents_with_equal_texts_and_different_ids_stay_two():
    frame = table(("saw", "hand saw", 2.0), ("saw", "hand saw", 3.0), document_id=["7", "8"])
    assert Judgments.from_frame(frame).frame["document_id"].to_list() == ["7", "8"]


def test_without_ids_equal_normalised_texts_get_equal_ids():
    judgments = Judgments.from_frame(table(("saw", "Hand Saw", 2.0), ("bow", "hand saw", 3.0)))
    assert judgments.frame["document_id"].n_unique() == 1
    assert judgments.frame["query_id"].n_unique() == 2


def test_the_scale_is_the_range_of_the_scores_unless_given():
    assert Judgments.from_frame(table(("a", "b", 0.0), ("a", "c", 4.0))).scale == (0.0, 4.0)


def test_further_columns_are_document_fields():
    assert Judgments.from_frame(table(("a", "b", 0.0), brand=["x"])).fields == ("brand",)


@pytest.mark.parametrize("value", ["two", "", "nan", "inf", "-inf", "1e400"])
def test_a_score_that_is_no_number_is_named_with_row_and_column(value: str):
    frame = table(("a", "b", 1.0), ("a", "c", 1.0)).with_columns(pl.Series("score", ["1", value]))
    with pytest.raises(InputError, match=r"^shop\.csv, row 2 after the header, column 'stars': the score is"):
        Judgments.from_frame(frame, source="shop.csv", score_name="stars")


@pytest.mark.parametrize("value", ["1e308", "-1e31"])
def test_a_score_that_would_overflow_is_named_with_row_and_column(value: str):
    frame = table(("a", "b", 1.0), ("a", "c", 1.0)).with_columns(pl.Series("score", ["1", value]))
    with pytest.raises(InputError, match=r"^shop\.csv, row 2 after the header, column 'stars': .*, beyond 1e\+30"):
        Judgments.from_frame(frame, source="shop.csv", score_name="stars")


def test_a_score_of_1e30_still_has_a_mean_and_a_gain():
    judgments = Judgments.from_frame(table(("a", "b", 1e30), ("a", "b", 1e30), ("a", "c", -1e30)))
    assert sorted(judgments.frame["score"]) == [-1e30, 1e30]
    assert np.isfinite(np.subtract(*judgments.scale))


@pytest.mark.parametrize(("score", "scale"), [(1.0, (0.0, 1.0)), (3.0, (0.0, 3.0)), (0.0, (-1.0, 0.0))])
def test_scores_that_are_all_equal_are_the_highest_of_a_scale(score: float, scale: tuple[float, float]):
    judgments = Judgments.from_frame(table(("a", "b", score), ("a", "c", score)))
    assert judgments.scale == scale
    assert judgments.one_score


@pytest.mark.parametrize("scale", [(3, 1), (2, 2), (0, 1e308)])
def test_a_scale_that_is_none_is_refused(scale: tuple[float, float]):
    with pytest.raises(InputError, match="is no scale; give the lowest score and then the highest"):
        Judgments.from_frame(table(("a", "b", 1.0)), scale=scale)


@pytest.mark.parametrize("blank", ["\u200b\u200d", "\u3000", "\ufeff", "\u2800 ", "\x07", "\u00ad"])
def test_texts_of_which_nothing_shows_are_empty(blank: str):
    judgments = Judgments.from_frame(table((blank, "saw", 1.0), ("saw", blank, 1.0), ("saw", "hand saw", 2.0)))
    assert judgments.cleaning == Cleaning(read=3, empty=2)


def test_marks_and_emoji_are_texts():
    judgments = Judgments.from_frame(table(("☃", "🛠️", 1.0), ("½", "क़", 2.0)))
    assert judgments.cleaning.empty == 0


def test_a_table_without_records_is_refused():
    with pytest.raises(InputError, match=r"shop\.csv: holds no records"):
        Judgments.from_frame(table(("a", "b", 1.0)).clear(), source="shop.csv")


def test_a_scale_that_no_score_lies_on_is_refused():
    with pytest.raises(InputError, match="no score lies on the scale 5 to 9"):
        Judgments.from_frame(table(("a", "b", 1.0)), scale=(5, 9))


def test_a_sample_larger_than_the_table_is_refused():
    with pytest.raises(InputError, match="cannot take 2 of its 1 records"):
        Judgments.from_frame(table(("a", "b", 1.0))).sample(2, seed=0)


def test_positives_lie_above_the_threshold_not_on_it():
    judgments = Judgments.from_frame(table(("a", "b", 2.5), ("a", "c", 2.6)))
    assert judgments.above(2.5).frame["document"].to_list() == ["c"]


rows = st.lists(
    st.tuples(
        st.sampled_from(["saw", "Saw", "drill", " drill ", "nail"]),
        st.sampled_from(["hand saw", "bow saw", "drill 18 V", "Drill 18 v"]),
        st.sampled_from([1.0, 1.33, 2.0, 2.67, 3.0]),
    ),
    min_size=1,
    max_size=12,
)


@given(rows, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_the_rows_changes_neither_the_table_nor_its_samples(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = (Judgments.from_frame(table(*r), scale=(1, 3)) for r in (rows, shuffled))
    assert one.frame.equals(other.frame)
    assert one.fingerprint == other.fingerprint
    assert one.sample(1, seed=5).frame.equals(other.sample(1, seed=5).frame)


@given(rows)
@settings(max_examples=50)
def test_every_record_is_kept_or_accounted_for(rows):
    judgments = Judgments.from_frame(table(*rows), scale=(1, 2)) if any(r[2] <= 2 for r in rows) else None
    if judgments is not None:
        assert len(judgments) == judgments.cleaning.kept


def test_the_fingerprint_changes_with_a_score():
    one, other = (Judgments.from_frame(table(("a", "b", score)), scale=(1, 3)) for score in (1.0, 2.0))
    assert one.fingerprint != other.fingerprint


def test_a_document_is_relevant_only_above_the_threshold():
    judgments = Judgments.from_frame(table(("saw", "hand saw", 2.5), ("saw", "table saw", 2.51)), scale=(1, 3))
    assert dict(zip(judgments.frame["document"], judgments.relevant(2.5).tolist(), strict=True)) == {
        "hand saw": False,
        "table saw": True,
    }
    assert judgments.above(2.5).frame["document"].to_list() == ["table saw"]
