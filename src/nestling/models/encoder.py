"""The one protocol of what encodes, and from a model's name to it: the light runtime for exports, torch for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestling.config.manifests import read_json, shaped
from nestling.config.names import Kind
from nestling.errors import InputError
from nestling.models.exported_encoder import CODEC, MANIFEST, ExportedEncoder
from nestling.models.load import find_model, load_model
from nestling.models.torch_encoder import SAMPLED, TorchEncoder
from nestling.retrieval.codec import Codec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SHRUNK = "nestling_shrunk.json"
AGAIN = "shrink the model again with nestling shrink"


class Encoder(Protocol):
    """An encoder of texts into vectors of `dim` components; the codec is that of a shrunk model's documents."""

    @property
    def dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def codec(self) -> Codec | None: ...

    def encode(self, texts: Sequence[str], *, kind: Kind = "document") -> NDArray[np.float32]:
        """Return (len(texts), dim) float32, each row of length 1; equal texts get equal rows."""
        ...


def prepare(
    encoder: Encoder, documents: Callable[[], Sequence[str]], *, queries: Sequence[str] = (), texts: int | None
) -> None:
    """Settle an engine that is chosen or calibrated by texts: some of them, and about how many there will be."""
    if isinstance(encoder, TorchEncoder) and encoder.engine_name in SAMPLED:
        from nestling.models.engines.engine import Sample

        encoder.prepare(Sample(queries, documents(), texts))


def open_encoder(model: str | Path, *, engine: str = "torch-fp32", threads: int | None = None) -> Encoder:
    """Open what encodes with a folder that `nestling export` or `nestling shrink` wrote, or a name as of `find_model`.

    Threads are those of an exported model, the engine (see `engine_for`) that of another.
    """
    folder = Path(model).expanduser()
    if (folder / MANIFEST).is_file():
        return ExportedEncoder.open(folder, threads=threads)
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            f"{model} is no folder that nestling export wrote, and other models need torch: "
            "pip install 'nestling[study]', or export it where that is installed"
        ) from None
    source = find_model(str(model))
    if (source.folder / SHRUNK).is_file():
        loaded, codec, _ = load_shrunk(source.folder)
        return TorchEncoder(loaded, source.fingerprint, codec, engine=engine)
    return TorchEncoder(load_model(source), source.fingerprint, engine=engine)


def load_shrunk(folder: Path | str) -> tuple[SentenceTransformer, Codec, dict[str, Any]]:
    """Return a model that `shrink` wrote, the codec for its documents, and what was chosen and why."""
    folder = Path(folder)
    missing = f"{folder}: holds no {SHRUNK}; give a folder that nestling shrink wrote"
    about: dict[str, Any] = read_json(folder / SHRUNK, dict[str, Any], advice=AGAIN, missing=missing)
    for name in ("oversampling", "dim"):
        shaped(about.get(name), int, str(folder / SHRUNK), AGAIN, name)
    model = load_model(str(folder))
    if about["oversampling"]:
        model.truncate_dim = about["dim"]
    return model, Codec.load(folder / CODEC), about
