"""A codec as one safetensors file: written whole or not at all, checked against its fingerprint when read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nestling.atomic import new_file
from nestling.config.names import PRECISIONS
from nestling.errors import InputError, unread
from nestling.retrieval.codec import FORMAT, Codec


def save_codec(codec: Codec, path: Path) -> None:
    """Write a codec, whole or not at all; `Codec.save` is the way to it."""
    from safetensors.numpy import save_file

    arrays = {"mean": codec.mean, "rotation": codec.rotation}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    about = {
        "format": FORMAT,
        "precision": codec.precision,
        "dim": str(codec.dim),
        "fingerprint": codec.fingerprint,
    }
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata=about)


def load_codec(path: Path) -> Codec:
    """Read a codec; `Codec.load` is the way to it.

    Raises:
        InputError: the file is missing, is no codec, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise unread(path, error, f"{path}: no such file; give the file that Codec.save wrote") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise unread(path, error, f"{path}: cannot be read as a codec ({error}); fit and save it again") from error
    dim = about.get("dim", "")
    if about.get("format") != FORMAT or about.get("precision") not in PRECISIONS or not dim.isdecimal():
        raise InputError(f"{path}: holds no codec of the form {FORMAT!r}; give the file that Codec.save wrote")
    codec = Codec(about["precision"], int(dim), arrays.get("mean"), arrays.get("rotation"))
    if codec.fingerprint != about.get("fingerprint"):
        raise InputError(f"{path}: the codec's content does not fit its fingerprint; fit and save it again")
    return codec
