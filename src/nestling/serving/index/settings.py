"""What an index is to be like."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nestling.config.names import PRECISIONS
from nestling.errors import InputError

AUTO = "auto"
EXACT_UP_TO = 50_000
"""Documents up to which all are scanned, where nothing else is asked for."""


@dataclass(frozen=True)
class IndexSettings:
    """Settings of an index.

    Attributes:
        shortlist: `DIM:PRECISION` of the codes that find candidates. `auto` is what a shrunk model brings along, else
            whole float32 vectors up to `exact_up_to` documents and one bit a dim beyond. Of a million titles with
            variations, 400 candidates by 384 bits (50 bytes) hold .9988 of the exact top 10; by 96 dims of int4 (50
            bytes) .9931; by 48 dims of int8 (50 bytes) .9337, and .9938 takes 6,400.
        exact_up_to: with more documents than this an inverted file is built.
        target: share of the exact top 10 that a search must find, on queries made of the documents' words.
        bm25: index the words too.
        language: of BM25's stemmer.
    """

    shortlist: str = AUTO
    exact_up_to: int = EXACT_UP_TO
    target: float = 0.995
    bm25: bool = True
    language: str = "english"

    def __post_init__(self) -> None:
        if self.shortlist != AUTO:
            self._parts()
        if self.exact_up_to < 0:
            raise InputError(f"--exact-up-to must be 0 or more, not {self.exact_up_to}")
        if not 0 < self.target <= 1:
            raise InputError(f"--target must be above 0 and at most 1, as in 0.995; not {self.target:g}")

    def cell(self, n: int, full: int) -> tuple[int, str]:
        """Return dims and precision of the shortlist of `n` documents of a model of `full` dims, which may be fewer."""
        if self.shortlist == AUTO:
            return full, "binary" if n > self.exact_up_to else "float32"
        dim, precision = self._parts()
        return min(dim, full), precision

    def is_inverted(self, n: int, precision: str) -> bool:
        """Whether so many documents are searched by an inverted file, which holds no floating-point numbers."""
        return n > self.exact_up_to and precision in ("int8", "int4", "binary")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, fit for JSON."""
        return asdict(self)

    def _parts(self) -> tuple[int, str]:
        dim, _, precision = self.shortlist.partition(":")
        if not dim.isdigit() or int(dim) < 1 or precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise InputError(f"--shortlist {self.shortlist!r}: give auto or DIMS:PRECISION, as in 48:int8, of {known}")
        return int(dim), precision
