"""Embeddings kept on disk: a model's texts are encoded once, whoever asks, and read memory-mapped from then on."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from nestling.atomic import new_file
from nestling.config.fingerprint import fingerprint
from nestling.config.names import Kind
from nestling.models.torch_encoder import TorchEncoder

logger = logging.getLogger(__name__)

Number = TypeVar("Number", np.float16, np.float32)
LAYOUT = 1
"""Part of every key; to be raised when `embed` comes to give other numbers for the same model and texts."""
CHECKSUM_BYTES = 4
READ_AT_ONCE = 1 << 22


class CachedEncoder:
    """An encoder that encodes only what no earlier call, of this process or another, has encoded.

    One file an entry, `KEY.npy`; a CRC-32 of all before it follows the numbers, and a damaged one is made again. Of
    processes that need the same entry at once, one encodes. Where the disk cannot take it, a warning goes to the log.
    """

    def __init__(self, encoder: TorchEncoder, folder: Path | None) -> None:
        """Take the encoder, and the cache's folder; None keeps embeddings in memory."""
        self.encoder, self.folder = encoder, folder
        self.dim, self.fingerprint, self.codec = encoder.dim, encoder.fingerprint, encoder.codec
        self._in_memory: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str], *, kind: Kind = "document") -> NDArray[np.float32]:
        """See `Encoder.encode`; not writeable. The same texts in another order are another entry."""
        if not len(texts):
            return self.encoder.encode(texts, kind=kind)
        key = self.key(texts, kind)
        if self.folder is not None:
            return self._from_file(self.folder / f"{key}.npy", texts, kind)
        if key not in self._in_memory:
            self._in_memory[key] = self.encoder.encode(texts, kind=kind)
            self._in_memory[key].flags.writeable = False
        return self._in_memory[key]

    def key(self, texts: Sequence[str], kind: Kind) -> str:
        """Return the key of an entry: hex digits of all that its numbers depend on."""
        settings = {"layout": LAYOUT, "kind": kind, "texts": texts_fingerprint(texts), **self.encoder.identity}
        return fingerprint(settings, size=16)

    def _from_file(self, entry: Path, texts: Sequence[str], kind: Kind) -> NDArray[np.float32]:
        if (embeddings := read_entry(entry, len(texts), np.float32)) is not None:
            return embeddings
        with _locked(entry) as writeable:
            if (embeddings := read_entry(entry, len(texts), np.float32)) is not None:
                return embeddings
            embeddings = self.encoder.encode(texts, kind=kind)
            if writeable:
                try:
                    # Of processes that died while they wrote this entry.
                    for leftover in entry.parent.glob(f".{entry.stem}.*.part.npy"):
                        leftover.unlink(missing_ok=True)
                    write_entry(entry, embeddings)
                    return cast(NDArray[np.float32], np.load(entry, mmap_mode="r", allow_pickle=False))
                except OSError as error:
                    logger.warning("embeddings are not cached in %s: %s", entry.parent, error.strerror or error)
        embeddings.flags.writeable = False
        return embeddings


def texts_fingerprint(texts: Sequence[str]) -> str:
    """Return 32 hex digits of the texts in their order, each with its length, so that no two lists collide."""
    # A lone surrogate, as from a file in a wrong encoding, is no reason to fail here.
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    return fingerprint(b"".join(len(data).to_bytes(8, "little") + data for data in encoded), size=16)


def read_entry(entry: Path, rows: int, kind: type[Number]) -> NDArray[Number] | None:
    """Map an entry, (rows, any) of a kind of number, or None where there is none or it is damaged."""
    try:
        if not entry.exists():
            return None
        with entry.open("rb") as file:
            if _checksum(file, entry.stat().st_size - CHECKSUM_BYTES) != file.read(CHECKSUM_BYTES):
                raise ValueError("its checksum does not fit")
        embeddings: NDArray[Number] = np.load(entry, mmap_mode="r", allow_pickle=False)
        if embeddings.ndim != 2 or len(embeddings) != rows or embeddings.dtype != kind:
            raise ValueError(f"it holds {embeddings.shape} {embeddings.dtype} for {rows} texts")
        return embeddings
    except (OSError, ValueError, EOFError) as error:
        logger.warning("cached embeddings %s cannot be used (%s); encoding again", entry, error)
        return None


def write_entry(entry: Path, embeddings: NDArray[np.floating]) -> None:
    """Write an entry and its checksum, whole or not at all."""
    with new_file(entry) as temporary, temporary.open("w+b") as file:
        np.lib.format.write_array(file, embeddings, allow_pickle=False)
        size = file.tell()
        file.seek(0)
        file.write(_checksum(file, size))


def _checksum(file: BinaryIO, size: int) -> bytes:
    """Return the checksum of the next `size` bytes of a file, read block by block."""
    value = 0
    for start in range(0, size, READ_AT_ONCE):
        value = zlib.crc32(file.read(min(size - start, READ_AT_ONCE)), value)
    return value.to_bytes(CHECKSUM_BYTES, "little")


@contextmanager
def _locked(entry: Path) -> Iterator[bool]:
    """Hold the lock of an entry; give whether there is one to hold, which a folder that is read only has not."""
    lock = FileLock(entry.with_suffix(".lock"))
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        logger.warning("embeddings are not cached in %s: %s", entry.parent, error)
    try:
        yield lock.is_locked
    finally:
        lock.release()
