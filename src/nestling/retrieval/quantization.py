"""Rows as few bits each: signs, or sixteen levels, after a rotation under which all components are alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIT_STEPS = 12
"""More bring next to nothing."""

# The 16 values that lose the least of a Gaussian, in 127ths of the outermost, 2.733 standard deviations
# (Lloyd 1982, "Least squares quantization in PCM"; Max 1960, "Quantizing for minimum distortion").
HALF = np.array([6, 18, 31, 44, 58, 75, 96, 127])
LEVELS = np.concatenate([-HALF[::-1], HALF]).astype(np.int8)
OUTERMOST = 2.733
# Rows are no exact Gaussians: of these widths each row takes the one that changes its direction the least.
WIDTHS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
FINE = 8
NEAREST = np.abs(np.arange(-127 * FINE, 127 * FINE + 1)[:, None] / FINE - LEVELS).argmin(axis=1).astype(np.uint8)

# What a byte holds, as int8 that lie in one number each: two of the levels, low half first; eight signs, high bit first
# as numpy packs them.
BYTES = np.arange(256, dtype=np.uint8)
NIBBLES = np.stack([LEVELS[BYTES & 15], LEVELS[BYTES >> 4]], axis=1).view(np.uint16)[:, 0]
SIGNS = (np.unpackbits(BYTES[:, None], axis=1).astype(np.int8) * 2 - 1).view(np.uint64)[:, 0]


def itq_rotation(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a rotation, (dim, dim), that brings centred rows near the corners of a cube, by iterative quantization."""
    start, upper = np.linalg.qr(np.random.default_rng(0).standard_normal((rows.shape[1], rows.shape[1])))
    rotation = (start * np.where(np.diag(upper) < 0, -1, 1)).astype(np.float32)
    for _ in range(FIT_STEPS):
        corners = np.where(rows @ rotation > 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd((rows.T @ corners).astype(np.float64))
        rotation = (left @ right).astype(np.float32)
    return rotation


def pack_bits(unit: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the signs, packed, and the inner product of each row with its signs."""
    overlap: NDArray[np.float32] = np.abs(unit).sum(axis=1)
    return np.packbits(unit > 0, axis=1), overlap


def pack_levels(unit: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return each row's nearest levels, two a byte, and its inner product with them (in units of 1, not 127)."""
    spread = np.sqrt((unit * unit).mean(axis=1)) * OUTERMOST
    best = np.full(len(unit), -np.inf, dtype=np.float32)
    overlap = np.zeros(len(unit), dtype=np.float32)
    level: NDArray[np.uint8] = np.zeros(unit.shape, dtype=np.uint8)
    for width in WIDTHS:
        fine = np.rint(divide(unit, spread * np.float32(width)).clip(-1, 1) * (127 * FINE)).astype(np.int16)
        tried = NEAREST[fine + 127 * FINE]
        values = LEVELS[tried].astype(np.float32) / np.float32(127)
        product = np.einsum("nd,nd->n", unit, values)
        cosine = product / np.sqrt(np.einsum("nd,nd->n", values, values))
        better = cosine > best
        best[better], overlap[better], level[better] = cosine[better], product[better], tried[better]
    low, high = level[:, ::2], level[:, 1::2] << np.uint8(4)
    high = np.pad(high, ((0, 0), (0, low.shape[1] - high.shape[1])))
    return low | high, overlap


def divide(values: NDArray[np.float32], by: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide each row (or value) by its number; 0 where that is 0."""
    divisors = by if values.ndim == 1 else by[:, None]
    return np.divide(values, divisors, out=np.zeros_like(values), where=divisors > 0)
