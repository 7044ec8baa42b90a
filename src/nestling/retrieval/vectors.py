"""Embeddings as rows: cut to their first dimensions, brought to length 1, multiplied."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

ROWS_AT_ONCE = 16384
FEW = 8
# A matrix product of few rows runs other code, in which the last bit of a score depends on the column's place.
MIN_ROWS = 16
EXACT_IN_FLOAT32 = 2**24


def truncate(embeddings: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Cut embeddings to their first `dim` components, (n, dim) float32, and bring each row back to length 1.

    A C-contiguous copy; a row whose first `dim` components are all zero stays zero.
    """
    full = embeddings.shape[1]
    if not 1 <= dim <= full:
        raise ValueError(f"cannot truncate embeddings of {full} dimensions to {dim}; give 1 to {full}")
    cut = np.array(embeddings[:, :dim], dtype=np.float32, order="C")
    normalise(cut)
    return cut


def normalise(rows: NDArray[np.float32]) -> None:
    """Bring rows to length 1, in place; a zero row stays zero."""
    # In float64, as the square of a small float32 is zero; in blocks, as a float64 copy of a corpus is large.
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE]
        lengths = np.linalg.norm(block.astype(np.float64), axis=1)
        lengths[lengths == 0] = 1.0
        block /= lengths[:, None]


def product(queries: NDArray[Any], documents: NDArray[Any], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply queries and documents, both float32 or both int8: `queries @ documents.T`, in the memory of `out`.

    Of int8 it is exact up to float32's rounding. Of float32, equal documents get equal products wherever they lie:
    of few queries, or where torch is loaded (numpy's own product of many rows differs in the last bit). `out` has
    `MIN_ROWS` rows or more, and as many as there are queries.
    """
    n, dim = queries.shape
    torch = sys.modules.get("torch")
    if queries.dtype == np.int8:
        if torch is not None and has_integer_product(dim):
            _tensor(out[:n]).copy_(torch._int_mm(_tensor(queries), _tensor(documents).T))
            return out[:n]
        # Integers in floating point are exact while no sum passes 2 to the 24th.
        kind: Any = np.float32 if dim * 127 * 127 < EXACT_IN_FLOAT32 else np.float64
        out[:n] = queries.astype(kind) @ documents.astype(kind).T
        return out[:n]
    with np.errstate(over="ignore", invalid="ignore"):
        if n < FEW:
            for row, query in zip(out, queries, strict=False):
                np.einsum("nd,d->n", documents, query, out=row)
        elif torch is None:
            np.matmul(queries, documents.T, out=out[:n])
        else:
            padded = np.pad(queries, ((0, max(0, MIN_ROWS - n)), (0, 0)))
            torch.mm(_tensor(padded), _tensor(documents).T, out=_tensor(out[: len(padded)]))
    return out[:n]


def int8_instructions() -> list[str]:
    """Return the names of the CPU's instructions for products of int8, as torch reports them."""
    import torch

    abilities = torch.cpu.get_capabilities()
    return [name for name in ("amx_int8", "avx512_vnni", "avx_vnni") if abilities.get(name)]


@cache
def has_integer_product(dim: int) -> bool:
    """Whether torch multiplies int8 of this size by instructions of the CPU, far faster than float32."""
    import torch

    # Elsewhere torch falls back on plain loops, which are far slower. At one dim torch 2.13 returns memory as it was.
    if not int8_instructions() or not torch.backends.mkldnn.is_available() or dim < 2:  # type: ignore[no-untyped-call]
        return False
    # A product whose sums saturate at 16 bits shows it at large values.
    signs = np.random.default_rng(0).choice(np.array([-127, 127], dtype=np.int8), (MIN_ROWS + 64, dim))
    hard = torch.from_numpy(signs)
    exact = hard[:MIN_ROWS].double() @ hard[MIN_ROWS:].double().T
    return bool((torch._int_mm(hard[:MIN_ROWS], hard[MIN_ROWS:].T).double() == exact).all())


def _tensor(array: NDArray[Any]) -> Tensor:
    import torch

    # torch warns of memory that it may not write, as of a memory-mapped file; no document is written to.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
