"""Texts to token ids by a plain `tokenizers` file, and ids to padded arrays: what a forward pass takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nestling.environment import needed
from nestling.errors import unread

TOKENIZE_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenizer of the package `tokenizers` that truncates by itself, and how its ids are padded."""

    tokenizer: Any
    special: bool = True
    pad_id: int = 0
    pad_side: Literal["left", "right"] = "right"

    @classmethod
    def from_file(cls, path: Path, **padding: Any) -> Tokens:
        """Read a tokenizer.json; InputError where the package is missing or the file cannot be read."""
        package = needed(str(path.parent), "tokenizers")
        try:
            tokenizer = package.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            what = f"{path}: cannot be read as a tokenizer ({error}); export the model again"
            raise unread(path, error, what) from None
        tokenizer.no_padding()
        return cls(tokenizer, **padding)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, truncated; a lone surrogate, which is no character, is read as "?"."""
        ids: list[list[int]] = []
        for start in range(0, len(texts), TOKENIZE_AT_ONCE):
            batch = list(texts[start : start + TOKENIZE_AT_ONCE])
            try:
                encodings = self.tokenizer.encode_batch_fast(batch, add_special_tokens=self.special)
            except (TypeError, UnicodeEncodeError):
                batch = [text.encode("utf-8", "replace").decode("utf-8") for text in batch]
                encodings = self.tokenizer.encode_batch_fast(batch, add_special_tokens=self.special)
            ids.extend(encoding.ids for encoding in encodings)
        return ids

    def padded(self, ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ids and their mask, both (n, longest) int64; the mask is 1 where a token stands."""
        width = max(map(len, ids))
        filled = np.full((len(ids), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(ids), width), dtype=np.int64)
        for row, tokens in enumerate(ids):
            place = slice(width - len(tokens), None) if self.pad_side == "left" else slice(len(tokens))
            filled[row, place] = tokens
            mask[row, place] = 1
        return filled, mask
