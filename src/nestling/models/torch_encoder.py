"""Texts to one float32 matrix by torch (or OpenVINO), at a model's full size, each distinct text once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import Kind
from nestling.models.load import STATIC, prompts_of
from nestling.models.tokens import TOKENIZE_AT_ONCE
from nestling.retrieval.codec import Codec
from nestling.retrieval.vectors import normalise

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from nestling.models.engines.engine import Engine, Sample

BATCH_SIZE = 64
UNSORTED_BATCHES = 64
# An engine's forward pass takes texts of LIKE times the longest's tokens and more, and shorter ones until it has
# ENOUGH_TOKENS: a small corpus would else be one batch, half of it padding.
LIKE = 0.8
ENOUGH_TOKENS = 1024
SAMPLED = ("auto", "openvino-int8")
"""Engines that depend on the texts to encode."""


class TorchEncoder:
    """A SentenceTransformer that encodes with an engine of torch or OpenVINO, at its full size."""

    def __init__(
        self,
        model: SentenceTransformer,
        fingerprint: str,
        codec: Codec | None = None,
        *,
        engine: str = "torch-fp32",
        batch_size: int = BATCH_SIZE,
        progress: Callable[[int, int], None] | None = None,
        sample: Sample | None = None,
    ) -> None:
        """Take a loaded model; see `embed` and `engine_for`."""
        self.model, self.fingerprint, self.codec, self.engine_name = model, fingerprint, codec, engine
        self.batch_size, self.progress = batch_size, progress
        with model.truncate_embeddings(None):
            self.dim = int(model.get_embedding_dimension() or 0)
        self._engine: Engine | None = None
        if sample is not None or engine not in SAMPLED:
            self.prepare(sample)

    @property
    def engine(self) -> Engine:
        """The engine, settled by `prepare` or when it is first needed."""
        return self._engine or self.prepare(None)

    def prepare(self, sample: Sample | None) -> Engine:
        """Settle the engine; see `engine_for`."""
        from nestling.models.engines.engine import engine_for

        self._engine = engine_for(self.engine_name, self.model, sample=sample)
        return self._engine

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that embeddings depend on beside the texts and their kind, fit for JSON."""
        return {
            "model": self.fingerprint,
            "engine": self.engine.key,
            "prompts": self.model.prompts,
            "default_prompt": self.model.default_prompt_name,
            "max_seq_length": self.model.max_seq_length,
        }

    def encode(self, texts: Sequence[str], *, kind: Kind = "document") -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        return embed(
            self.model, texts, kind=kind, batch_size=self.batch_size, progress=self.progress, engine=self.engine
        )


def embed(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    kind: Kind,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
    engine: Engine | None = None,
) -> NDArray[np.float32]:
    """Encode texts at the model's full size, whatever its `truncate_dim` says.

    Each distinct text is encoded once, so equal texts get bit-equal vectors. Batches are of like token count:
    `SentenceTransformer.encode` sorts by characters, and so pads more.

    Args:
        batch_size: texts in a forward pass, where the engine does not go by tokens.
        progress: called with (distinct texts done, distinct texts in all) after each batch.
        engine: made of the model by `engine_for`; without one the model encodes as it is.

    Returns (len(texts), dim) float32, C-contiguous, each row of length 1 (a zero row stays zero).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if kind not in ("query", "document"):
        raise ValueError(f"kind must be 'query' or 'document', got {kind!r}")
    tokens = None
    if engine is not None:
        model, tokens = engine.model, engine.tokens
    encode = model.encode_query if kind == "query" else model.encode_document
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    distinct = list(place)

    # For encode, truncate_dim=None means the model's own setting, so that has to be lifted.
    with model.truncate_embeddings(None):
        if not distinct:
            return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
        embeddings: NDArray[np.float32] | None = None
        done = 0
        for rows, at_once in _batches(model, distinct, batch_size, tokens, prompts_of(model)[kind]):
            batch = encode([distinct[row] for row in rows], batch_size=at_once, show_progress_bar=False)
            if embeddings is None:
                embeddings = np.empty((len(distinct), batch.shape[1]), dtype=np.float32)
            embeddings[rows] = batch
            done += len(rows)
            if progress is not None:
                progress(done, len(distinct))
    assert embeddings is not None
    normalise(embeddings)
    return embeddings if len(distinct) == len(texts) else embeddings[[place[text] for text in texts]]


def _batches(
    model: SentenceTransformer, texts: list[str], batch_size: int, tokens: int | None, prompt: str
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield the rows of each call and how many go at once, longest first so that memory runs out at the start."""
    from transformers import PreTrainedTokenizerBase

    tokenizer = getattr(model, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        # A few large calls cost less than many small ones, and a static model has no padding.
        step = batch_size * UNSORTED_BATCHES
        at_once = step if type(model[0]).__name__ == STATIC else batch_size
        for start in range(0, len(texts), step):
            yield np.arange(start, min(start + step, len(texts))), at_once
        return
    limit = model.max_seq_length
    lengths: list[int] = []
    for start in range(0, len(texts), TOKENIZE_AT_ONCE):
        ids = tokenizer(
            [prompt + text for text in texts[start : start + TOKENIZE_AT_ONCE]],
            truncation=limit is not None,
            max_length=limit,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        lengths.extend(map(len, ids))
    counts = np.array(lengths, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    falling = -counts[order]
    start = 0
    while start < len(order):
        step = batch_size
        if tokens is not None:
            longest = max(1, -int(falling[start]))
            like = int(np.searchsorted(falling, -LIKE * longest, side="right")) - start
            step = max(1, min(tokens // longest, max(like, ENOUGH_TOKENS // longest)))
        rows = order[start : start + step]
        yield rows, step
        start += len(rows)
