"""A worker encodes one partition into one file, in whatever process: an encoder with a fixed number of threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.models.encoder import Encoder, open_encoder
from nestling.models.exported_encoder import ExportedEncoder
from nestling.models.torch_encoder import TorchEncoder
from nestling.retrieval.vectors import truncate
from nestling.serving.encode.files import Part, Recipe, part_fingerprint, text_hashes, write_part
from nestling.serving.encode.partitions import Slice, Source


@dataclass
class Worker:
    """An encoder, and where it reads and writes; `model` and `out` are the same places wherever a worker runs.

    `encoder` None opens one when it is first needed, for Ray hides what is wrong before that.
    """

    model: str
    out: Path
    source: Source
    recipe: Recipe
    encoder: Encoder | None = None

    def encode(self, part: Slice) -> tuple[Part, bool]:
        """Return a partition's file, and True if it is there and unchanged; else encode it in one call and write it."""
        ids, texts = self.source.read(part)
        hashes = text_hashes(texts)
        current = Part.of(part.file, self.recipe, ids, hashes)
        if part_fingerprint(self.out / current.file) == current.fingerprint:
            return current, True
        self.encoder = self.encoder or self._opened()
        vectors = self._vectors(self.encoder, texts)
        if self.recipe.dim < self.encoder.dim:
            vectors = truncate(vectors, self.recipe.dim)
        write_part(self.out / current.file, ids, hashes, vectors.astype(self.recipe.precision), current.fingerprint)
        return current, False

    def _opened(self) -> Encoder:
        # Read when tokenizers first starts its threads, of which there would else be one for each core.
        os.environ["RAYON_NUM_THREADS"] = str(self.recipe.threads)
        encoder = open_encoder(self.model, threads=self.recipe.threads)
        opened = (encoder.fingerprint, *runtime_of(encoder))
        expected = (self.recipe.fingerprint, self.recipe.runtime, self.recipe.device)
        if opened != expected:
            what = f"{self.model} is {' '.join(opened)} for a worker, not {' '.join(expected)}"
            raise InputError(f"{what}; put the same model under the same name on every machine")
        if not self.out.is_dir():
            raise InputError(f"{self.out}: not there for a worker; give a folder that every machine of the cluster has")
        return encoder

    def _vectors(self, encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
        if isinstance(encoder, ExportedEncoder):
            return encoder.encode(texts, batch_size=self.recipe.batch)
        assert isinstance(encoder, TorchEncoder)
        import torch

        encoder.batch_size = self.recipe.batch
        before = torch.get_num_threads()
        torch.set_num_threads(self.recipe.threads)
        try:
            return encoder.encode(texts)
        finally:
            torch.set_num_threads(before)


def runtime_of(encoder: Encoder) -> tuple[str, str]:
    """Return the runtime and the device of an encoder, as in ("torch-fp32", "cpu")."""
    if isinstance(encoder, ExportedEncoder):
        return f"{encoder.format}-{encoder.precision}", "cpu"
    assert isinstance(encoder, TorchEncoder)
    return encoder.engine.name, str(encoder.model.device.type)
