"""Tokens of a training's texts, computed once: flat on disk, padded only when a batch is made."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from nestling import atomic
from nestling.config.fingerprint import fingerprint
from nestling.config.names import Kind
from nestling.models.load import prompts_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

logger = logging.getLogger(__name__)

AT_ONCE = 16_384
PAD_TO = 8
"""Widths are rounded up to this: matrix kernels like it, and fewer shapes are met."""


@dataclass(frozen=True)
class TokenStore:
    """The token ids of texts, special tokens included, cut at the model's limit.

    Attributes:
        ids: (n_tokens,) int32, text after text.
        offsets: (n_texts + 1,) int64; text i is `ids[offsets[i]:offsets[i + 1]]`.
        padding: the id that fills the end of shorter texts.
        prompt_length: tokens at the start of each text that the model's pooling leaves out.
    """

    ids: np.ndarray
    offsets: np.ndarray
    padding: int
    prompt_length: int = 0

    @classmethod
    def build(
        cls, texts: Sequence[str], tokenizer: Any, max_length: int | None, *, cache: Path | None = None
    ) -> TokenStore:
        """Tokenise `texts`, cut at `max_length` tokens, or read their tokens from the folder `cache`.

        The tokenizer is a fast one of transformers, or, as in a static model, one of `tokenizers`: no special tokens.
        """

        def encode() -> dict[str, np.ndarray]:
            parts = [np.zeros(0, dtype=np.int32)]
            lengths: list[int] = [0]
            for start in range(0, len(texts), AT_ONCE):
                part = list(texts[start : start + AT_ONCE])
                if hasattr(tokenizer, "backend_tokenizer"):
                    cut = {"truncation": max_length is not None, "max_length": max_length}
                    encoded = tokenizer(part, **cut, return_attention_mask=False, return_token_type_ids=False).input_ids
                else:
                    encoded = [each.ids for each in tokenizer.encode_batch(part, add_special_tokens=False)]
                lengths.extend(map(len, encoded))
                parts.append(np.fromiter(chain(*encoded), dtype=np.int32))
            return {"ids": np.concatenate(parts), "offsets": np.cumsum(lengths, dtype=np.int64)}

        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        # Truncation and padding are leftovers of the last call, not properties of the tokenizer.
        state = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
        padding = int(getattr(tokenizer, "pad_token_id", 0) or 0)
        arrays = cached(cache, "tokens", [state, max_length, *texts], encode)
        return cls(arrays["ids"], arrays["offsets"], padding)

    @property
    def lengths(self) -> np.ndarray:
        """(n_texts,) int64, the tokens of each text."""
        return np.diff(self.offsets)

    def _places(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = self.offsets[rows]
        return starts, self.offsets[np.asarray(rows) + 1] - starts

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` of the texts with these numbers, (len(rows), width) int64 each."""
        import torch

        starts, lengths = self._places(rows)
        places = np.arange(-(-int(lengths.max(initial=1)) // PAD_TO) * PAD_TO)
        mask = places < lengths[:, None]
        ids = np.full(mask.shape, self.padding, dtype=np.int64)
        ids[mask] = self.ids[(starts[:, None] + places)[mask]]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        return batch | ({"prompt_length": torch.tensor([self.prompt_length])} if self.prompt_length else {})


class BagStore(TokenStore):
    """The same for a static model, which takes the tokens of a batch in one row."""

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Return `input_ids` (tokens of the batch,) and `offsets` (len(rows),) int64, where each text begins."""
        import torch

        starts, lengths = self._places(rows)
        begins = np.cumsum(lengths) - lengths
        places = np.arange(int(lengths.sum())) + np.repeat(starts - begins, lengths)
        return {"input_ids": torch.from_numpy(self.ids[places].astype(np.int64)), "offsets": torch.from_numpy(begins)}


def tokenised(model: SentenceTransformer, texts: Sequence[str], *, kind: Kind, cache: Path | None = None) -> TokenStore:
    """Return the tokens that a model reads of texts: after its prompt for their kind, cut at its limit."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    prompt = prompts_of(model)[kind]
    # A static model gives infinity.
    limit = model.max_seq_length if math.isfinite(model.max_seq_length or math.inf) else None
    store = BagStore if isinstance(model[0], StaticEmbedding) else TokenStore
    tokens = store.build([prompt + text for text in texts], model.tokenizer, limit, cache=cache)
    if not prompt or pools_prompts(model):
        return tokens
    return replace(tokens, prompt_length=int(model.preprocess([""], prompt=prompt).get("prompt_length") or 0))


def pools_prompts(model: SentenceTransformer) -> bool:
    """Return whether a model's pooling takes in the tokens of the prompt, as nearly all do."""
    return all(getattr(module, "include_prompt", True) for module in model)


def cached(
    cache: Path | None, kind: str, parts: list[Any], make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays that `make` returns; a folder keeps them for calls with equal `parts`, on which they depend."""
    if cache is None:
        return make()
    path = cache / f"{kind}-{fingerprint(parts)}.npz"
    if path.is_file():
        try:
            with np.load(path) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, BadZipFile):
            logger.warning("%s is damaged and made again", path)
    arrays = make()
    with atomic.new_file(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
    return arrays
