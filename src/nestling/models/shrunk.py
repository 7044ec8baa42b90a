"""A model that `shrink` wrote: its folder, and the codec for its documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config.manifests import read_json, shaped
from nestling.models.load import load_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from nestling.retrieval.codec import Codec

SHRUNK, CODEC = "nestling_shrunk.json", "nestling_codec.safetensors"
AGAIN = "shrink the model again with nestling shrink"


def load_shrunk(folder: Path | str) -> tuple[SentenceTransformer, Codec, dict[str, Any]]:
    """Return a model that `shrink` wrote, the codec for its documents, and what was chosen and why.

    Example:
        >>> model, codec, about = load_shrunk("small")  # doctest: +SKIP
        >>> codes = codec.encode(model.encode(documents))  # doctest: +SKIP

    Raises:
        InputError: the folder was not written by `shrink`.
    """
    from nestling.retrieval.codec import Codec

    folder = Path(folder)
    missing = f"{folder}: holds no {SHRUNK}; give a folder that nestling shrink wrote"
    about: dict[str, Any] = read_json(folder / SHRUNK, dict[str, Any], advice=AGAIN, missing=missing)
    for name in ("oversampling", "dim"):
        shaped(about.get(name), int, str(folder / SHRUNK), AGAIN, name)
    model = load_model(str(folder))
    if about["oversampling"]:
        model.truncate_dim = about["dim"]
    return model, Codec.load(folder / CODEC), about
