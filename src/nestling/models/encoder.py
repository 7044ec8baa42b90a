"""From a model's name to what encodes with it: an exported folder by the light runtime, anything else by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import Kind
from nestling.errors import InputError
from nestling.retrieval.codec import Codec

if TYPE_CHECKING:
    from nestling.models.engines.engine import Engine, Sample

RUNTIME = "nestling_runtime.json"
SAMPLED = ("auto", "openvino-int8")
"""Engines that depend on the texts to encode."""


class TextEncoder(Protocol):
    """What encodes.

    Attributes:
        dim: size of the vectors.
        fingerprint: of the model; the same for its exports.
        codec: how a shrunk model's documents are to be stored; otherwise None.
    """

    @property
    def dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def codec(self) -> Codec | None: ...

    def encode(self, texts: Sequence[str], *, kind: Kind = "document") -> NDArray[np.float32]:
        """Return (len(texts), dim) float32, each row of length 1; equal texts get equal rows."""
        ...


class TorchEncoder:
    """A SentenceTransformer that encodes with an engine of torch or OpenVINO."""

    def __init__(self, model: Any, fingerprint: str, codec: Codec | None, engine: str) -> None:
        self.model, self.fingerprint, self.codec, self.wanted = model, fingerprint, codec, engine
        with model.truncate_embeddings(None):
            self.dim = int(model.get_embedding_dimension() or 0)
        self._engine: Engine | None = None
        if engine not in SAMPLED:
            self.prepare(None)

    @property
    def engine(self) -> Engine:
        """What encodes; settled by `prepare`, or when it is first asked for."""
        return self._engine or self.prepare(None)

    def prepare(self, sample: Sample | None) -> Engine:
        """Settle the engine by a sample of the texts to encode; see `engine_for`."""
        from nestling.models.engines.engine import engine_for

        self._engine = engine_for(self.wanted, self.model, sample=sample)
        return self._engine

    def encode(
        self, texts: Sequence[str], *, kind: Kind = "document", progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """See `TextEncoder.encode`."""
        from nestling.models.torch_encoder import embed

        return embed(self.model, texts, kind=kind, engine=self.engine, progress=progress)


def is_exported(model: str | Path) -> bool:
    """Whether this is a folder that `nestling export` wrote."""
    return (Path(model).expanduser() / RUNTIME).is_file()


def prepare(
    encoder: TextEncoder, documents: Callable[[], Sequence[str]], *, queries: Sequence[str] = (), texts: int | None
) -> None:
    """Settle what encodes, where it depends on that, by some of the texts and about how many there will be.

    Args:
        documents: called only for engines that are chosen, or calibrated, by texts.
        texts: None for no end.
    """
    if isinstance(encoder, TorchEncoder) and encoder.wanted in SAMPLED:
        from nestling.models.engines.engine import Sample

        encoder.prepare(Sample(queries, documents(), texts))


def open_encoder(model: str | Path, *, engine: str = "torch-fp32", threads: int | None = None) -> TextEncoder:
    """Open what encodes with a model.

    Args:
        model: a folder that `nestling export` or `nestling shrink` wrote, any SentenceTransformer folder, a bundled
            name or a hub id.
        engine: of a model that was not exported; see `nestling.models.engines.engine`.
        threads: of an exported model.

    Raises:
        InputError: the model cannot be had, or needs a package that is not installed.
    """
    if is_exported(model):
        from nestling.models.exported_encoder import Encoder

        return Encoder.open(Path(model).expanduser(), threads=threads)
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            f"{model} is no folder that nestling export wrote, and other models need torch: "
            "pip install 'nestling[study]', or export it where that is installed"
        ) from None
    from nestling.models.load import find_model, load_model
    from nestling.models.shrunk import SHRUNK, load_shrunk

    source = find_model(str(model))
    codec = None
    if (source.folder / SHRUNK).is_file():
        loaded, codec, _ = load_shrunk(source.folder)
    else:
        loaded = load_model(source)
    return TorchEncoder(loaded, source.fingerprint, codec, engine)
