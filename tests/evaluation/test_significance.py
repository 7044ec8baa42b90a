from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nestling.errors import InputError
from nestling.evaluation.significance import MEANS, SCHEMA, compare_all, holm, interval, means_by


def compare(a, b, **options) -> SimpleNamespace:
    """The one row of a comparison of two systems."""
    return SimpleNamespace(**compare_all({"a": a, "b": b}, **options).row(0, named=True))


def recalls(seed: int, shape: int | tuple[int, ...]) -> np.ndarray:
    """Values as recall has them: piled up at 0 and 1, few between."""
    return np.random.default_rng(seed).choice([0, 0, 1 / 3, 1 / 2, 1, 1, 1], size=shape)


def reciprocal_ranks(seed: int, shape: int | tuple[int, ...]) -> np.ndarray:
    ranks = np.random.default_rng(seed).geometric(0.3, size=shape)
    return np.where(ranks > 10, 0.0, 1 / ranks)


def skewed(seed: int, shape: int | tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=shape)


@pytest.mark.parametrize("make", [recalls, skewed])
def test_the_interval_is_that_of_scipy_but_for_the_draws(make) -> None:
    values = make(1, 60)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="BCa", vectorized=True, axis=-1, batch=2000, rng=2
    ).confidence_interval
    low, high = interval(values, resamples=40_000)
    width = theirs.high - theirs.low
    assert (float(low), float(high)) == pytest.approx((theirs.low, theirs.high), abs=0.02 * width)


def test_values_equal_to_the_mean_count_half_for_the_bias_as_in_scipy() -> None:
    values = np.array([0.0] * 8 + [1.0] * 6)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, vectorized=True, axis=-1, batch=2000, rng=2
    ).confidence_interval
    low, high = interval(values, resamples=40_000)
    assert (float(low), float(high)) == pytest.approx((theirs.low, theirs.high))


def test_the_interval_of_a_difference_is_that_of_the_percentiles_of_scipy() -> None:
    a, b = np.zeros(20), skewed(2, 20)
    theirs = stats.bootstrap(
        (b - a,), np.mean, n_resamples=40_000, method="percentile", vectorized=True, axis=-1, batch=2000, rng=2
    ).confidence_interval
    found = compare(a, b, resamples=40_000)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize("make", [recalls, reciprocal_ranks])
def test_intervals_of_95_percent_hold_the_mean_in_about_95_of_100_samples(make) -> None:
    truth = make(0, 400_000).mean()
    low, high = interval(make(1, (2000, 60)), resamples=2000)
    covered = np.mean((low <= truth) & (truth <= high))
    assert 0.92 < covered < 0.97
    # Neither side takes all the misses, as with plain percentiles it nearly does.
    assert 0.01 < np.mean(low > truth) < 0.05
    assert 0.01 < np.mean(high < truth) < 0.06


def test_the_interval_shrinks_with_the_root_of_the_number_of_queries() -> None:
    few, many = (np.subtract(*interval(recalls(n, (50, n)), resamples=2000)).mean() for n in (100, 1600))
    assert few / many == pytest.approx(4, rel=0.1)


def test_one_query_and_equal_values_have_an_interval_of_no_width() -> None:
    low, high = interval(np.array([[0.1, 0.1, 0.1], [0.7, 0.7, 0.7]]))
    assert low.tolist() == high.tolist() == [0.1, 0.7]
    low, high = interval([0.3])
    assert float(low) == float(high) == 0.3
    assert low.shape == ()


def test_many_series_give_the_intervals_that_each_gives_alone() -> None:
    values = recalls(4, (600, 23))
    low, high = interval(values, resamples=300)
    for row in (0, 255, 256, 599):
        alone = interval(values[row], resamples=300)
        assert (low[row], high[row]) == pytest.approx((float(alone[0]), float(alone[1])), abs=1e-12)


def test_resamples_in_many_blocks_have_the_spread_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.evaluation.significance.BLOCK", 1000)
    values = skewed(4, 300)
    low, high = interval(values, resamples=4000)
    assert float(high - low) == pytest.approx(2 * 1.96 * values.std() / np.sqrt(300), rel=0.05)
    assert compare(np.zeros(300), values - values.mean()).p == pytest.approx(1.0, abs=1e-6)


def test_nothing_depends_on_the_order_of_the_queries() -> None:
    a, b = recalls(1, 90), recalls(2, 90)
    order = np.random.default_rng(0).permutation(90)
    one, other = compare(a, b), compare(a[order], b[order])
    assert (one.p, one.wins, one.ties, one.losses) == (other.p, other.wins, other.ties, other.losses)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-12)


def test_the_draws_are_always_the_same() -> None:
    a, b = skewed(1, 90), skewed(2, 90)
    assert compare(a, b) == compare(a, b)
    assert interval(a) == interval(a)


@given(
    # Of values whose sums are exact, since scipy knows no slack for a sum that is 0 but for rounding.
    pairs=st.lists(st.tuples(*[st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])] * 2), min_size=2, max_size=9)
)
@settings(max_examples=40, deadline=None)
def test_p_of_few_queries_is_that_of_all_assignments_of_signs(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    # scipy's exact test takes the observations as they are and flips within pairs.
    theirs = stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert compare(a, b).p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_three_wins_of_three_have_p_of_a_quarter() -> None:
    # Of the 8 assignments of signs the two with all signs alike are as extreme.
    found = compare([0.0, 0.1, 0.2, 0.5], [0.3, 0.2, 0.9, 0.5])
    assert (found.p, found.wins, found.ties, found.losses) == (0.25, 3, 1, 0)
    assert found.difference == pytest.approx((0.3 + 0.1 + 0.7) / 4)


def test_differences_that_cancel_but_for_rounding_have_p_of_1() -> None:
    a, b = [0.0, 0.0, 0.3], [0.1, 0.2, 0.0]
    assert np.subtract(b, a).sum() != 0
    assert compare(a, b).p == 1.0
    assert compare(a * 40, b * 40).p == 1.0


def test_p_of_many_queries_is_that_of_scipy_but_for_the_draws() -> None:
    a, b = recalls(1, 200), recalls(2, 200)
    b[:20] = 1.0
    theirs = stats.permutation_test(
        (b - a,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples", n_resamples=20_000, rng=1
    ).pvalue
    found = compare(a, b, resamples=20_000).p
    assert 0.005 < theirs < 0.5
    assert found == pytest.approx(theirs, abs=4 * np.sqrt(theirs * (1 - theirs) / 20_000) * np.sqrt(2))


def test_no_random_p_is_below_one_in_all_draws_and_the_observed() -> None:
    assert compare(np.zeros(300), np.ones(300), resamples=999).p == 1 / 1000


@pytest.mark.parametrize("n", [8, 200])
def test_p_is_uniform_where_systems_are_alike(n: int) -> None:
    rng = np.random.default_rng(6)
    noise = rng.normal(size=(600, n)) * rng.exponential(size=(600, n))
    table = compare_all({"none": np.zeros((600, n)), "noise": noise}, measures=[str(i) for i in range(600)])
    p = table["p"].to_numpy()
    # With n = 8 p takes steps of 2 / 2**8, so it is spread by as much before the test.
    assert stats.kstest(p - rng.random(600) * (2 / 2**8 if n == 8 else 0), "uniform").pvalue > 0.01
    assert 0.02 < np.mean(p < 0.05) < 0.09


def test_the_test_finds_a_difference_that_is_there() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(400)
    found = compare(a, a + 0.1 + rng.normal(scale=0.3, size=400))
    assert found.p < 0.001
    assert 0 < found.low < found.difference < found.high


def test_exchanging_the_systems_turns_the_signs_and_nothing_else() -> None:
    a, b = skewed(1, 120), skewed(2, 120)
    one, other = compare(a, b), compare(b, a)
    assert (one.p, one.wins, one.losses) == (other.p, other.losses, other.wins)
    assert one.difference == pytest.approx(-other.difference)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.01)


def test_values_that_differ_by_rounding_alone_are_ties() -> None:
    a = np.array([0.1 + 0.2, 0.5])
    found = compare(a, [0.3, 0.5])
    assert (found.difference, found.p, found.ties) == (0.0, 1.0, 2)


def by_system(values: dict[str, np.ndarray]) -> pl.DataFrame:
    """Values of two measures, (2, n_queries), by system and query."""
    tables = [
        pl.DataFrame(
            {"variant": name, "dim": 8, "query_id": [f"q{i}" for i in range(row.shape[1])], "a": row[0], "b": row[1]}
        )
        for name, row in values.items()
    ]
    return pl.concat(tables)


def test_means_by_system_are_those_of_numpy_and_lie_in_their_intervals() -> None:
    values = {name: recalls(seed, (2, 150)) for seed, name in enumerate(["tuned", "base"])}
    table = means_by(by_system(values), ["variant", "dim"])
    assert list(table.schema.items())[2:] == list(MEANS.items())
    assert table.select("variant", "dim", "measure", "queries").rows() == [
        (name, 8, measure, 150) for name in values for measure in "ab"
    ]
    for row, series in zip(table.iter_rows(named=True), np.concatenate(list(values.values())), strict=True):
        assert row["value"] == pytest.approx(np.mean(series), abs=1e-12)
        assert row["low"] < row["value"] < row["high"]
        # Of about 2 standard errors either side.
        assert row["high"] - row["low"] == pytest.approx(3.92 * series.std() / np.sqrt(150), rel=0.25)
    alone = means_by(by_system({"base": values["base"]}), ["variant", "dim"])
    for name in ("value", "low", "high"):
        assert table[name][2:].to_numpy() == pytest.approx(alone[name].to_numpy(), abs=1e-12)


def test_a_measure_equal_for_all_queries_has_an_interval_of_no_width() -> None:
    table = means_by(by_system({"x": np.ones((2, 3))}), ["variant"])
    assert table.select("value", "low", "high", "queries").rows() == [(1.0, 1.0, 1.0, 3)] * 2


def test_holm_multiplies_by_the_number_of_those_not_yet_passed() -> None:
    # Sorted .005 .01 .03 .04: times 4, 3, 2, 1 is .02 .03 .06 .04, and the last may not fall below .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert holm([0.2]).tolist() == [0.2]
    assert holm([]).tolist() == []


def test_all_pairs_are_compared_as_one_pair_alone_and_holm_counts_every_row() -> None:
    series = {name: recalls(seed, (2, 150)) for seed, name in enumerate(["base", "tuned", "small"])}
    table = compare_all(series, measures=["recall@10", "mrr@10"])
    assert table.schema == SCHEMA
    assert table.select("a", "b", "measure").rows() == [
        (a, b, measure)
        for a, b in [("base", "tuned"), ("base", "small"), ("tuned", "small")]
        for measure in ("recall@10", "mrr@10")
    ]
    row = table.row(5, named=True)
    alone = compare(series["tuned"][1], series["small"][1])
    assert (row["p"], row["wins"], row["ties"], row["losses"]) == (alone.p, alone.wins, alone.ties, alone.losses)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((alone.difference, alone.low, alone.high))
    assert table["p_holm"].to_numpy() == pytest.approx(holm(table["p"].to_numpy()))


def test_each_is_compared_with_the_reference_wherever_it_stands() -> None:
    series = {name: recalls(seed, 40) for seed, name in enumerate("xyz")}
    table = compare_all(series, measures=["recall@10"], reference="y")
    assert table.select("a", "b").rows() == [("y", "x"), ("y", "z")]
    assert table["difference"][0] == pytest.approx(series["x"].mean() - series["y"].mean())


def test_more_pairs_than_go_into_one_product_keep_their_order() -> None:
    series = {str(i): recalls(i, 12) for i in range(24)}
    table = compare_all(series, resamples=200)
    assert table.height == 276
    for row in (0, 255, 256, 275):
        a, b, difference = table["a"][row], table["b"][row], table["difference"][row]
        assert difference == pytest.approx(series[b].mean() - series[a].mean())


@pytest.mark.parametrize("call", [lambda: interval([]), lambda: compare([], []), lambda: interval(np.empty((3, 0)))])
def test_no_queries_are_an_error(call) -> None:
    with pytest.raises(ValueError, match="no query"):
        call()


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        interval([0.1, float("nan")])
    with pytest.raises(ValueError, match="neither"):
        interval(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="same"):
        compare([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="do not fit"):
        compare_all({"a": [0.1, 0.2], "b": [0.3]})
    with pytest.raises(ValueError, match="do not fit 2 measures"):
        compare_all({"a": [0.1], "b": [0.3]}, measures=["recall@10", "mrr@10"])
    with pytest.raises(InputError, match="no such system; choose one of a, b"):
        compare_all({"a": [0.1], "b": [0.3]}, reference="c")
    with pytest.raises(InputError, match="two systems"):
        compare_all({"a": [0.1]})


def test_values_that_differ_by_rounding_alone_have_a_whole_interval() -> None:
    low, high = interval([1.0, 0.9999999999999999, 1.0, 1.0000000000000002])
    assert (low, high) == pytest.approx((1.0, 1.0))
