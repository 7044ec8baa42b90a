"""Cells: ways to store a model's embeddings and search them, places in the grid of sizes and precisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from nestling.config.names import PRECISIONS, ROTATIONS, Rotation
from nestling.errors import InputError
from nestling.retrieval.codec import Codec


@dataclass(frozen=True, order=True)
class Cell:
    """A way to store documents and to search them.

    Embeddings are rotated (if at all), cut to `dim`, brought to length 1 and stored in `precision`. With `oversampling`
    (0 for none, else 2 or more) that gives a shortlist, so many times as long, which the full-size float16 embedding
    rescores, as in adaptive retrieval (Kusupati et al. 2022, arXiv 2205.13147).
    """

    dim: int
    precision: str = "float32"
    rotation: Rotation = "none"
    oversampling: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}; choose {', '.join(PRECISIONS)}")
        if self.rotation not in ROTATIONS:
            raise InputError(f"unknown rotation {self.rotation!r}; choose {', '.join(ROTATIONS)}")
        if self.oversampling < 0 or self.oversampling == 1:
            raise InputError(f"oversampling must be 0 (none) or 2 and more, not {self.oversampling}")
        if self.dim < 1:
            raise InputError(f"a size must be 1 or more, not {self.dim}")

    def __str__(self) -> str:
        rotated = "" if self.rotation == "none" else f" {self.rotation}"
        rescored = f" rescored x{self.oversampling}" if self.oversampling else ""
        return f"{self.dim} {self.precision}{rotated}{rescored}"

    @property
    def bytes(self) -> int:
        """Bytes to hold in memory for one document; what rescoring reads (2 bytes a full-size dim) may lie on disk."""
        return Codec(self.precision, self.dim).bytes_per_vector

    @property
    def row(self) -> tuple[int, str, str, int, int]:
        """Values of `grid.CELL`."""
        return self.dim, self.precision, self.rotation, self.oversampling, self.bytes


def cells_of(
    sizes: Sequence[int],
    *,
    precisions: Sequence[str] = ("float32",),
    rotations: Sequence[str] = ("none",),
    oversampling: Sequence[int] = (),
) -> list[Cell]:
    """Return the grid of sizes (falling, the full size first), but for that one in float32 rotated or rescored."""
    cells = []
    plainest = min(rotations, key=ROTATIONS.index)
    for rotation, dim, precision in product(rotations, sizes, precisions):
        full = dim == sizes[0] and precision == "float32"
        if full and rotation != plainest:
            continue
        factors = [0] if full else [0, *oversampling]
        cells += [Cell(dim, precision, rotation, factor) for factor in factors]  # type: ignore[arg-type]
    return cells
