"""What encodes one partition into one file, the same in every engine: an encoder with a fixed number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.models.encoder import Encoder, open_encoder
from nestling.models.exported_encoder import ExportedEncoder
from nestling.models.torch_encoder import TorchEncoder, embed
from nestling.retrieval.vectors import truncate
from nestling.serving.encode.files import Part, Recipe, input_fingerprint, part_name, text_hashes, write_part
from nestling.serving.encode.partitions import Slice, Source

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What a worker has to know; it holds no texts and no weights, so it travels to other processes.

    Attributes:
        model: a name or path that leads to the same model wherever a worker runs.
        out: the folder, as an absolute path that every worker can write to.
    """

    model: str
    out: Path
    source: Source
    recipe: Recipe


class Worker:
    """An encoder and a job. A partition is encoded in one call, so its vectors depend on nothing outside of it."""

    def __init__(self, job: Job, encoder: Encoder | None = None) -> None:
        """Open the job's encoder, unless one is given.

        Raises:
            InputError: here the model is not to be had or is another, or the folder is not there.
        """
        self.job = job
        self.encoder = encoder or open_encoder(job.model, threads=job.recipe.threads)
        here = (self.encoder.fingerprint, *runtime_of(self.encoder))
        wanted = (job.recipe.fingerprint, job.recipe.runtime, job.recipe.device)
        if here != wanted:
            raise InputError(
                f"{job.model} is {' '.join(here)} for a worker, not {' '.join(wanted)}; "
                "put the same model under the same name on every machine"
            )
        if not job.out.is_dir():
            raise InputError(f"{job.out}: not there for a worker; give a folder that every machine of the cluster has")

    def encode(self, part: Slice, progress: Progress | None = None) -> Part:
        """Read, encode and write a partition; its file appears whole or not at all.

        Raises:
            InputError: the partition cannot be read.
        """
        recipe = self.job.recipe
        ids, texts = self.job.source.read(part)
        hashes = text_hashes(texts)
        made = Part(part_name(part.number), len(ids), input_fingerprint(recipe, ids, hashes))
        vectors = self._vectors(texts, progress)
        if recipe.dim < self.encoder.dim:
            vectors = truncate(vectors, recipe.dim)
        write_part(self.job.out / made.file, ids, hashes, vectors.astype(recipe.precision), made.fingerprint)
        return made

    def _vectors(self, texts: Sequence[str], progress: Progress | None) -> NDArray[np.float32]:
        encoder, batch = self.encoder, self.job.recipe.batch
        if isinstance(encoder, ExportedEncoder):
            return encoder.encode(texts, batch_size=batch)
        assert isinstance(encoder, TorchEncoder)
        with torch_threads(self.job.recipe.threads):
            return embed(
                encoder.model, texts, kind="document", batch_size=batch, engine=encoder.engine, progress=progress
            )


def runtime_of(encoder: Encoder) -> tuple[str, str]:
    """Return what runs an encoder's model and on what, as in ("torch-fp32", "cpu")."""
    if isinstance(encoder, ExportedEncoder):
        return f"{encoder.format}-{encoder.precision}", "cpu"
    assert isinstance(encoder, TorchEncoder)
    return encoder.engine.name, str(encoder.model.device.type)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile; an exported model has its number from when it was opened."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
