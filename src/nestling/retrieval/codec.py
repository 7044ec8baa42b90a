"""Codecs that store an embedding in few bytes: float32, float16, int8, int4 and binary, fitted on documents.

A quantized row is `mean + scale * rotation @ c`, with small integers c and one scale a row that are stored, and a mean
and a rotation that the codec holds once. The codes of documents are scored against the query itself (asymmetric
distance; Jégou, Douze and Schmid 2011, "Product quantization for nearest neighbor search").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.atomic import new_file
from nestling.config.names import PRECISIONS
from nestling.errors import InputError, unread
from nestling.retrieval.quantization import NIBBLES, SIGNS, divide, itq_rotation, pack_bits, pack_levels
from nestling.retrieval.vectors import ROWS_AT_ONCE

FORMAT = "nestling codec 1"
FIT_ROWS = 16384
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Codes:
    """Encoded rows. `len`, and rows by slice or by an array of row numbers, as of an array."""

    data: NDArray[np.generic]
    """(n, dim) float32, float16 or int8; of int4 (n, ceil(dim / 2)) uint8; of binary (n, ceil(dim / 8)) uint8."""
    scales: NDArray[np.float16] | None
    """(n,), or None where the precision has none."""
    codec: str
    """Fingerprint of the codec that made them."""

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Codes:
        return Codes(self.data[rows], None if self.scales is None else self.scales[rows], self.codec)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, scales included."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


@dataclass(frozen=True, eq=False)
class Codec:
    """A precision with what was fitted for rows of `dim`; `fit_codec` makes one. Equal when all of it is equal."""

    precision: str
    dim: int
    mean: NDArray[np.float32] | None = None
    rotation: NDArray[np.float32] | None = None
    """Of int4 and binary, (dim, dim) and orthogonal: `(row - mean) @ rotation` is quantized."""

    @property
    def bytes_per_vector(self) -> int:
        """Bytes stored for one document, its scale included."""
        bits = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "binary": 1}[self.precision]
        return -(-self.dim * bits // 8) + (0 if self.is_float else 2)

    @property
    def is_float(self) -> bool:
        """Whether rows are stored as floating-point numbers, without a scale."""
        return self.precision in ("float32", "float16")

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits, the same for equal codecs."""
        digest = hashlib.sha256(f"{FORMAT} {self.precision} {self.dim}".encode())
        for array in (self.mean, self.rotation):
            if array is not None:
                digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codec) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def encode(self, rows: NDArray[np.floating]) -> Codes:
        """Encode (n, dim) float rows, finite, fit for float16; a row's code does not depend on the rows beside it."""
        parts = [self._encode(block, start) for start, block in _blocks(rows, self.dim)]
        scales = None if self.is_float else np.concatenate([scale for _, scale in parts])
        return Codes(np.concatenate([data for data, _ in parts]), scales, self.fingerprint)

    def _encode(self, block: NDArray[np.float32], start: int) -> tuple[NDArray[np.generic], NDArray[np.float16]]:
        none = np.zeros(len(block), dtype=np.float16)
        if self.precision == "float32":
            return block, none
        largest = np.abs(block).max(axis=1)
        _refuse_long(largest, start)
        if self.precision == "float16":
            return block.astype(np.float16), none
        if self.precision == "int8":
            scales = largest.astype(np.float16)
            # A scale rounded down would clip; the integers then follow the scale that is stored, not the exact one.
            scales = np.where(scales < largest, np.nextafter(scales, np.float16(np.inf)), scales)
            return np.rint(divide(block * np.float32(127), scales.astype(np.float32))).astype(np.int8), scales
        if self.rotation is None or self.mean is None:
            raise ValueError(f"a codec of precision {self.precision} needs a mean and a rotation; use fit_codec")
        # In float64, so that the last bit, which depends on the rows beside it in a product, moves no code.
        rotated = ((block.astype(np.float64) - self.mean) @ self.rotation).astype(np.float32)
        largest = np.abs(rotated).max(axis=1)
        unit = divide(rotated, largest)
        data, overlap = pack_bits(unit) if self.precision == "binary" else pack_levels(unit)
        # With this scale a row's product with itself is exact, so that of one with queries near it is unbiased
        # (Gao and Long 2024, "RaBitQ").
        exact = divide((unit * unit).sum(axis=1) * largest, overlap)
        _refuse_long(exact, start)
        return data, exact.astype(np.float16)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """Return the rows that the codes stand for, (n, dim) float32."""
        self.check(codes)
        if self.is_float:
            return codes.data.astype(np.float32)
        parts = []
        for start in range(0, max(len(codes), 1), ROWS_AT_ONCE):
            part = codes[start : start + ROWS_AT_ONCE]
            scaled: NDArray[np.floating] = np.multiply(self.integers(part), self.steps(part)[:, None], dtype=np.float64)
            if self.rotation is not None and self.mean is not None:
                scaled = scaled @ self.rotation.T.astype(np.float64) + self.mean
            parts.append(scaled.astype(np.float32))
        return np.concatenate(parts)

    def integers(self, codes: Codes) -> NDArray[np.int8]:
        """Return what int8, int4 or binary codes hold, (n, dim) int8 in -127..127; to be multiplied by `steps`."""
        if self.precision == "int8":
            return codes.data.astype(np.int8, copy=False)
        table = NIBBLES if self.precision == "int4" else SIGNS
        return np.asarray(table[codes.data].view(np.int8)[:, : self.dim])

    def steps(self, codes: Codes) -> NDArray[np.float32]:
        """Return what one unit of `integers` is worth in each row, (n,) float32."""
        assert codes.scales is not None, f"{self.precision} codes have no scales"
        return codes.scales.astype(np.float32) / np.float32(1 if self.precision == "binary" else 127)

    def project(self, queries: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (n, dim) `projected` and (n,) `shift`: a document scores `projected @ (step * integers) + shift`."""
        rows = np.concatenate([block for _, block in _blocks(queries, self.dim)])
        if self.rotation is None or self.mean is None:
            return rows, np.zeros(len(rows), dtype=np.float32)
        exact = rows.astype(np.float64)
        return (exact @ self.rotation).astype(np.float32), (exact @ self.mean).astype(np.float32)

    def check(self, codes: Codes) -> None:
        """Refuse codes of another codec."""
        if codes.codec != self.fingerprint:
            raise InputError(
                f"codes of codec {codes.codec} cannot be read by codec {self.fingerprint} ({self.precision}, "
                f"{self.dim} dims); load the codec that was saved with them, or encode again"
            )

    def save(self, path: Path) -> None:
        """Write the codec as one safetensors file, whole or not at all."""
        from safetensors.numpy import save_file

        arrays = {"mean": self.mean, "rotation": self.rotation}
        tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        about = {"format": FORMAT, "precision": self.precision, "dim": str(self.dim), "fingerprint": self.fingerprint}
        with new_file(path) as temporary:
            save_file(tensors, temporary, metadata=about)

    @classmethod
    def load(cls, path: Path) -> Codec:
        """Read what `save` wrote; refuse what is missing, no codec, or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                about: dict[str, Any] = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise unread(path, error, f"{path}: no such file; give the file that Codec.save wrote") from None
        except (OSError, SafetensorError, ValueError) as error:
            raise unread(path, error, f"{path}: cannot be read as a codec ({error}); fit and save it again") from error
        known = about.get("format") == FORMAT and about.get("precision") in PRECISIONS
        if not known or not str(about.get("dim", "")).isdecimal():
            raise InputError(f"{path}: holds no codec of the form {FORMAT!r}; give the file that Codec.save wrote")
        codec = cls(about["precision"], int(about["dim"]), arrays.get("mean"), arrays.get("rotation"))
        if codec.fingerprint != about.get("fingerprint"):
            raise InputError(f"{path}: the codec's content does not fit its fingerprint; fit and save it again")
        return codec


def fit_codec(precision: str, documents: NDArray[np.floating]) -> Codec:
    """Fit a codec on documents, (n, dim) float of length 1, best those that it will encode.

    float32, float16 and int8 (one scale a vector) need nothing of the documents but their size. int4 and binary take
    the mean off and rotate the rest so that its coordinates are equal in strength and near the corners of a cube:
    iterative quantization (Gong and Lazebnik 2011, "Iterative Quantization: A Procrustean Approach to Learning Binary
    Codes"), from a fixed random start, on at most 16,384 documents, evenly spaced.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if documents.ndim != 2 or 0 in documents.shape:
        raise InputError(f"a codec needs embeddings of documents, (n, dim); these are of shape {documents.shape}")
    dim = documents.shape[1]
    for start, block in _blocks(documents, dim):
        if precision != "float32":
            _refuse_long(np.abs(block).max(axis=1), start)
    if precision not in ("int4", "binary"):
        return Codec(precision, dim)
    sample = documents[:: -(-len(documents) // FIT_ROWS)].astype(np.float32)
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Codec(precision, dim, mean, itq_rotation(sample - mean))


def _blocks(rows: NDArray[np.floating], dim: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Give the rows in checked float32 blocks, each with its first row's number; at least one block."""
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise InputError(f"embeddings of shape {rows.shape} do not fit a codec of {dim} dims; give (n, {dim})")
    for start in range(0, max(len(rows), 1), ROWS_AT_ONCE):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(rows[start : start + ROWS_AT_ONCE], dtype=np.float32)
        wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(wrong):
            raise InputError(f"embedding {start + wrong[0]} (counted from 0) holds NaN or infinite values")
        yield start, block


def _refuse_long(sizes: NDArray[np.float32], start: int) -> None:
    wrong = np.flatnonzero(sizes > LARGEST)
    if len(wrong):
        what = f"embedding {start + wrong[0]} (counted from 0) is too long for float16"
        raise InputError(f"{what}; bring embeddings to length 1")
