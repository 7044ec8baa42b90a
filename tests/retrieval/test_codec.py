from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from nestling.config.names import PRECISIONS
from nestling.errors import InputError
from nestling.retrieval.codec import Codec, fit_codec
from nestling.retrieval.quantization import LEVELS, OUTERMOST

FITTED = ("int4", "binary")


def unit_rows(seed: int, n: int, dim: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 48])
def test_a_code_takes_the_bytes_that_the_codec_says(precision: str, dim: int) -> None:
    expected = {"float32": 4 * dim, "float16": 2 * dim, "int8": dim + 2, "int4": (dim + 1) // 2 + 2}
    codec = fit_codec(precision, unit_rows(0, 20, dim))
    assert codec.bytes_per_vector == expected.get(precision, (dim + 7) // 8 + 2)
    assert codec.encode(unit_rows(1, 3, dim)).nbytes == 3 * codec.bytes_per_vector


def test_float32_gives_back_the_bits_it_was_given() -> None:
    rows = unit_rows(0, 30, 7)
    codec = fit_codec("float32", rows)
    np.testing.assert_array_equal(codec.decode(codec.encode(rows)), rows)


def test_float16_gives_back_each_value_as_numpy_rounds_it() -> None:
    rows = unit_rows(0, 30, 7)
    codec = fit_codec("float16", rows)
    np.testing.assert_array_equal(codec.decode(codec.encode(rows)), rows.astype(np.float16).astype(np.float32))


def test_int8_codes_by_hand() -> None:
    codec = fit_codec("int8", np.eye(3, dtype=np.float32))
    codes = codec.encode(np.array([[1.0, -1.0, 63.6 / 127], [0, 0, 0]], np.float32))
    assert codes.data.tolist() == [[127, -127, 64], [0, 0, 0]]
    assert codes.scales is not None
    assert codes.scales.tolist() == [1.0, 0.0]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 20),
    dim=st.integers(1, 70),
    exponent=st.floats(-12, 4.5),
)
def test_int8_errs_by_half_a_step_at_most(seed: int, n: int, dim: int, exponent: float) -> None:
    rows = (unit_rows(seed, n, dim) * 10.0**exponent).astype(np.float32)
    codec = fit_codec("int8", rows)
    codes = codec.encode(rows)
    assert codes.scales is not None
    scales = codes.scales.astype(np.float64)
    largest = np.abs(rows).max(axis=1)
    assert (scales >= largest).all()
    # float16 has 11 bits, and a least step of 2 ** -24.
    assert (scales <= largest * (1 + 2.0**-10) + 2.0**-24).all()
    assert (np.abs(codec.decode(codes) - rows) <= scales[:, None] / 127 * 0.5001).all()


def test_levels_of_int4_are_those_that_lose_the_least_of_a_gaussian() -> None:
    # Lloyd's and Max's conditions: a level is the mean of what lies nearest to it.
    levels = LEVELS.astype(np.float64) / 127 * OUTERMOST
    edges = [-np.inf, *((a + b) / 2 for a, b in pairwise(levels)), np.inf]
    means = [(norm.pdf(a) - norm.pdf(b)) / (norm.cdf(b) - norm.cdf(a)) for a, b in pairwise(edges)]
    np.testing.assert_allclose(levels, means, atol=OUTERMOST / 127)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), dim=st.integers(1, 70), exponent=st.floats(-2, 2))
def test_int4_rounds_each_turned_value_to_a_level_beside_it(seed: int, n: int, dim: int, exponent: float) -> None:
    rows = (unit_rows(seed, n, dim) * 10.0**exponent).astype(np.float32)
    codec = fit_codec("int4", rows)
    assert codec.rotation is not None
    codes = codec.encode(rows)
    turned = (rows.astype(np.float64) - codec.mean) @ codec.rotation
    integers = codec.integers(codes).astype(np.float64)
    assert np.isin(integers, LEVELS).all()
    cosines = (turned * integers).sum(axis=1)
    lengths = np.linalg.norm(turned, axis=1) * np.linalg.norm(integers, axis=1)
    present = np.linalg.norm(turned, axis=1) > 1e-5 * 10.0**exponent
    # In one dim any level will do; in many a Gaussian keeps a cosine of sqrt(1 - 0.0095), and a row is near enough one.
    assert (cosines[present] > 0.95 * lengths[present]).all()
    # The last test's largest step is 31 of 127 wide, and its scale at most half as large again.
    decoded = (codec.decode(codes).astype(np.float64) - codec.mean) @ codec.rotation
    inside = np.abs(integers) < 127
    step = codec.steps(codes)[:, None].astype(np.float64)
    allowed = (31 / 2 + 127 * 0.1) * step + 1e-6 * 10.0**exponent
    assert (np.abs(decoded - turned) <= allowed)[inside & present[:, None]].all()


def test_int4_loses_one_part_in_a_hundred_of_gaussian_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 384)).astype(np.float32)
    codec = Codec("int4", 384, np.zeros(384, np.float32), np.eye(384, dtype=np.float32))
    decoded = codec.decode(codec.encode(rows))
    cosines = (decoded * rows).sum(axis=1) / np.linalg.norm(decoded, axis=1) / np.linalg.norm(rows, axis=1)
    # Max 1960, table I: 16 levels lose 0.0095 of the variance; the choice of a width for each row saves a little.
    assert 0.0085 < 1 - np.mean(cosines**2) < 0.0095


def test_int4_adapts_its_width_to_rows_that_are_no_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (200, 64)).astype(np.float32)
    codec = Codec("int4", 64, np.zeros(64, np.float32), np.eye(64, dtype=np.float32))
    lost = ((codec.decode(codec.encode(rows)) - rows) ** 2).mean()
    monkeypatch.setattr("nestling.retrieval.quantization.WIDTHS", (1.0,))
    assert lost < 0.8 * ((codec.decode(codec.encode(rows)) - rows) ** 2).mean()


@pytest.mark.parametrize("precision", FITTED)
def test_fitting_finds_the_cube_whose_corners_the_documents_are(precision: str) -> None:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    rows = (np.sign(rng.standard_normal((500, 6))) @ turn).astype(np.float32)
    codec = fit_codec(precision, rows)
    assert codec.rotation is not None
    at_corners = np.abs((rows - codec.mean) @ codec.rotation)
    np.testing.assert_allclose(at_corners, 1, atol=0.15)


def test_binary_keeps_two_parts_in_pi_of_gaussian_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
    codec = Codec("binary", 64, np.zeros(64, np.float32), np.eye(64, dtype=np.float32))
    decoded = codec.decode(codec.encode(rows))
    cosines = (decoded * rows).sum(axis=1) / np.linalg.norm(decoded, axis=1) / np.linalg.norm(rows, axis=1)
    assert np.mean(cosines) == pytest.approx(np.sqrt(2 / np.pi), abs=0.005)


@pytest.mark.parametrize("precision", FITTED)
@pytest.mark.parametrize("dim", [1, 5, 8, 33])
def test_the_residual_of_a_row_multiplies_with_its_code_as_with_itself(precision: str, dim: int) -> None:
    rows = unit_rows(3, 50, dim)
    codec = fit_codec(precision, rows)
    assert codec.mean is not None
    residual = rows.astype(np.float64) - codec.mean
    decoded = codec.decode(codec.encode(rows)).astype(np.float64) - codec.mean
    np.testing.assert_allclose((residual * decoded).sum(axis=1), (residual**2).sum(axis=1), rtol=2e-3, atol=1e-6)


def test_binary_codes_by_hand_with_the_mean_as_threshold() -> None:
    mean = np.full(9, 0.5, np.float32)
    codec = Codec("binary", 9, mean, np.eye(9, dtype=np.float32))
    codes = codec.encode(np.array([[1, 0, 0, 0, 0, 0, 0, 0, 1]], np.float32))
    assert codes.data.tolist() == [[0b10000000, 0b10000000]]
    assert codec.integers(codes).tolist() == [[1, -1, -1, -1, -1, -1, -1, -1, 1]]
    np.testing.assert_allclose(codec.decode(codes), [[1, 0, 0, 0, 0, 0, 0, 0, 1]], atol=1e-6)


def test_int4_packs_the_first_value_into_the_low_half() -> None:
    codec = Codec("int4", 3, np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    codes = codec.encode(np.array([[1.0, -1.0, 1.0]], np.float32))
    assert (codes.data & 15).tolist()[0][0] == (codes.data & 15).tolist()[0][1]
    assert codec.integers(codes).tolist()[0][0] == -codec.integers(codes).tolist()[0][1] > 0
    np.testing.assert_allclose(codec.decode(codes), [[1, -1, 1]], atol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_rows_code_does_not_depend_on_the_rows_beside_it(precision: str) -> None:
    rows = unit_rows(5, 300, 96)
    codec = fit_codec(precision, rows)
    together = codec.encode(rows)
    for start, stop in [(0, 1), (7, 12), (150, 300)]:
        alone, part = codec.encode(rows[start:stop]), together[start:stop]
        np.testing.assert_array_equal(alone.data, part.data)
        np.testing.assert_array_equal(alone.scales, part.scales)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_chosen_rows_decode_as_they_do_among_all(precision: str) -> None:
    rows = unit_rows(6, 40, 12)
    codec = fit_codec(precision, rows)
    codes, chosen = codec.encode(rows), np.array([31, 2, 2])
    assert len(codes[chosen]) == 3
    np.testing.assert_allclose(codec.decode(codes[chosen]), codec.decode(codes)[chosen], atol=1e-6)


def test_more_rows_than_a_block_are_all_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit_rows(7, 50, 10)
    codec = fit_codec("int4", rows)
    whole = codec.encode(rows)
    monkeypatch.setattr("nestling.retrieval.codec.ROWS_AT_ONCE", 8)
    parts = codec.encode(rows)
    np.testing.assert_array_equal(parts.data, whole.data)
    np.testing.assert_array_equal(parts.scales, whole.scales)
    np.testing.assert_allclose(codec.decode(parts), codec.project(codec.decode(whole))[0] @ codec.rotation.T, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_documents_are_kept_exactly_or_nearly(precision: str) -> None:
    rows = np.tile(unit_rows(8, 1, 20), (30, 1))
    codec = fit_codec(precision, rows)
    np.testing.assert_allclose(codec.decode(codec.encode(rows)), rows, atol=4e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7])
def test_zero_and_tiny_rows_decode_to_about_nothing(precision: str, size: float) -> None:
    codec = fit_codec(precision, np.concatenate([unit_rows(9, 50, 16), -unit_rows(9, 50, 16)]))
    rows = unit_rows(10, 5, 16) * np.float32(size)
    np.testing.assert_allclose(codec.decode(codec.encode(rows)), rows, atol=0.02 if precision in FITTED else 1e-7)


@pytest.mark.parametrize("precision", FITTED)
@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_a_codec_can_be_fitted_on_rows_of_about_nothing(precision: str, size: float) -> None:
    rows = unit_rows(10, 5, 16) * np.float32(size)
    codec = fit_codec(precision, rows)
    np.testing.assert_allclose(codec.decode(codec.encode(rows)), rows, atol=1e-9)


@pytest.mark.parametrize("precision", FITTED)
def test_the_rotation_is_orthogonal_also_with_fewer_documents_than_dims(precision: str) -> None:
    rotation = fit_codec(precision, unit_rows(11, 3, 24)).rotation
    assert rotation is not None
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(24), atol=1e-5)


def test_bits_of_rows_with_one_strong_dim_keep_more_than_their_signs() -> None:
    rng = np.random.default_rng(12)
    rows = (rng.standard_normal((2000, 32)) / np.arange(1, 33)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    codec = fit_codec("binary", rows)
    lost = ((codec.decode(codec.encode(rows)) - rows) ** 2).sum(axis=1).mean()
    plain = Codec("binary", 32, np.zeros(32, np.float32), np.eye(32, dtype=np.float32))
    lost_by_signs = ((plain.decode(plain.encode(rows)) - rows) ** 2).sum(axis=1).mean()
    assert lost < 0.7 * lost_by_signs


@pytest.mark.parametrize("precision", PRECISIONS)
def test_projected_queries_score_codes_as_decoded_documents_do(precision: str) -> None:
    rows, queries = unit_rows(13, 60, 21), unit_rows(14, 9, 21)
    codec = fit_codec(precision, rows)
    codes = codec.encode(rows)
    projected, shift = codec.project(queries)
    stored = codes.data if codec.is_float else codec.integers(codes) * codec.steps(codes)[:, None]
    expected = queries @ codec.decode(codes).T
    np.testing.assert_allclose(projected @ stored.astype(np.float32).T + shift[:, None], expected, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_saved_codec_comes_back_equal_and_encodes_alike(precision: str, tmp_path: Path) -> None:
    rows = unit_rows(15, 50, 11)
    codec = fit_codec(precision, rows)
    codec.save(tmp_path / "sub" / "codec.safetensors")
    loaded = Codec.load(tmp_path / "sub" / "codec.safetensors")
    assert loaded == codec
    assert hash(loaded) == hash(codec)
    np.testing.assert_array_equal(loaded.encode(rows).data, codec.encode(rows).data)
    np.testing.assert_array_equal(loaded.decode(codec.encode(rows)), codec.decode(codec.encode(rows)))


def test_codecs_of_other_documents_sizes_or_precisions_are_not_equal() -> None:
    rows = unit_rows(16, 30, 8)
    assert fit_codec("int4", rows) == fit_codec("int4", rows)
    assert fit_codec("int4", rows) != fit_codec("int4", rows[:20])
    assert fit_codec("int8", rows) == fit_codec("int8", rows[:20])
    assert fit_codec("int8", rows) != fit_codec("int8", rows[:, :4])
    assert fit_codec("int8", rows) != fit_codec("float16", rows)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.safetensors: no such file"):
        Codec.load(tmp_path / "none.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    path.write_text("hello")
    with pytest.raises(InputError, match="cannot be read as a codec"):
        Codec.load(path)


def test_a_safetensors_file_that_is_no_codec_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "codec.safetensors"
    save_file({"weight": np.ones(3)}, path)
    with pytest.raises(InputError, match="holds no codec"):
        Codec.load(path)


def test_a_damaged_codec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    fit_codec("int4", unit_rows(17, 30, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="does not fit its fingerprint"):
        Codec.load(path)


def test_rows_of_another_size_are_refused() -> None:
    codec = fit_codec("int8", unit_rows(18, 5, 8))
    with pytest.raises(InputError, match=r"shape \(5, 9\) do not fit a codec of 8 dims"):
        codec.encode(unit_rows(18, 5, 9))
    with pytest.raises(InputError, match=r"shape \(8,\) do not fit"):
        codec.encode(np.ones(8, np.float32))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_named(precision: str, value: float) -> None:
    rows = unit_rows(19, 5, 8)
    codec = fit_codec(precision, rows)
    rows[3, 2] = value
    for refused in (codec.encode, codec.project, lambda documents: fit_codec(precision, documents)):
        with pytest.raises(InputError, match=r"embedding 3 .* NaN or infinite"):
            refused(rows)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_rows_too_long_for_float16_are_named(precision: str) -> None:
    codec = fit_codec(precision, unit_rows(20, 5, 8))
    rows = unit_rows(20, 5, 8)
    rows[4] *= 1e20
    for refused in (codec.encode, lambda documents: fit_codec(precision, documents)):
        with pytest.raises(InputError, match=r"embedding 4 .* too long"):
            refused(rows)


def test_codes_of_another_codec_are_refused() -> None:
    rows = unit_rows(21, 30, 8)
    codes = fit_codec("int4", rows).encode(rows)
    with pytest.raises(InputError, match="encode again"):
        fit_codec("int4", rows[:20]).decode(codes)


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'int2'; choose one of float32, float16, int8, int4, binary"):
        fit_codec("int2", unit_rows(22, 5, 8))


def test_no_documents_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(0, 8\)"):
        fit_codec("int8", np.zeros((0, 8), np.float32))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_rows_encode_to_no_codes(precision: str) -> None:
    codec = fit_codec(precision, unit_rows(23, 5, 9))
    codes = codec.encode(np.zeros((0, 9), np.float32))
    assert len(codes) == 0
    assert codec.decode(codes).shape == (0, 9)
