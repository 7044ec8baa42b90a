"""An index's folder: a manifest that names the generation in force, and the files of that generation."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from nestling import atomic
from nestling.config.fingerprint import fingerprint
from nestling.config.manifests import read_json, shaped
from nestling.errors import InputError, unread
from nestling.retrieval.codec import Codec
from nestling.retrieval.fusion import Fusion

MANIFEST, LOCK = "manifest.json", ".lock"
FORMAT = 1
TABLE, CODES, SCALES, CODEC = "documents.parquet", "codes.npy", "scales.npy", "codec.safetensors"
VECTORS, INVERTED, LEXICAL = "vectors.npy", "inverted.faiss", "bm25"
AGAIN = "make it anew with nestling index --rebuild"


@dataclass(frozen=True)
class Manifest:
    """Description of an index.

    Attributes:
        generation: name of the folder with the files.
        model: as the user gave it; a model that lies in the index's folder `model` goes first.
        dim: of the vectors that rescore.
        shortlist: candidates that are rescored for the top 10.
        lists: of an inverted file that a search looks into; 0 where all codes are scanned.
        agreement: share of the exact top 10 that such a search finds; None where nothing was left out.
        fusion: how BM25 is added; None without BM25, or where no weight is known.
        files: path in the generation -> its size in bytes and its BLAKE2b.
    """

    generation: str
    model: str
    fingerprint: str
    documents: int
    dim: int
    shortlist: int
    lists: int = 0
    agreement: float | None = None
    warning: str = ""
    fusion: dict[str, Any] | None = None
    fields: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    version: str = ""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    def bytes_per_document(self, codec: Codec) -> float:
        """Return the bytes of a document in what a search scans: its code, or its part of the inverted file."""
        if self.lists and INVERTED in self.files:
            return self.files[INVERTED][0] / self.documents
        return float(codec.bytes_per_vector)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a generation in force."""
    atomic.write_json(folder / MANIFEST, {"format": FORMAT, **asdict(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """Read an index's manifest; InputError where the folder is no index, of another format, or damaged."""
    path = folder / MANIFEST
    if folder.is_file():
        raise InputError(f"{folder} is a file; give the folder of an index")
    missing = f"{folder} is no index: it has no {MANIFEST}; make one with nestling index"
    values = read_json(path, Any, advice=AGAIN, missing=missing)
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise InputError(f"{path} is of another format than {FORMAT}; {AGAIN}")
    manifest: Manifest = shaped(values, Manifest, str(path), AGAIN)
    for name, least in (("documents", 1), ("dim", 1), ("shortlist", 1), ("lists", 0)):
        if getattr(manifest, name) < least:
            raise InputError(f"{path}: {name} must be {least} or more, not {getattr(manifest, name)}; {AGAIN}")
    for name in (manifest.generation, *manifest.files):
        parts = PurePosixPath(name).parts
        if not name.isprintable() or not parts or {"..", "/"} & set(parts):
            raise InputError(f"{path} names {name!a}, which is no file of an index; {AGAIN}")
    if manifest.fusion is not None:
        try:
            Fusion.from_dict(manifest.fusion)
        except (InputError, OverflowError) as error:
            raise InputError(f"{path}: fusion: {error}; {AGAIN}") from None
    return manifest


@contextmanager
def locked(folder: Path, own: set[str], verb: str, content: str) -> Iterator[None]:
    """Make a folder, which has one of its `own` names or is empty, and keep other calls of a verb out of it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for {content}")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names and not names & own:
        what = f"{folder} holds something else than {content}, so nothing is written there"
        raise InputError(f"{what}; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder}: another nestling {verb} works on it; wait for it to end") from None
    with lock:
        yield


def describe(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and BLAKE2b of every file under a folder, by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, fingerprint(path, size=16)) for path in files}


def check(folder: Path, manifest: Manifest, *, content: Container[str] = ()) -> Path:
    """Return the folder in force; InputError where a file has another size, or one of `content` another BLAKE2b."""
    generation = folder / manifest.generation
    for name, (size, digest) in manifest.files.items():
        path = generation / name
        try:
            actual = path.stat().st_size
        except OSError as error:
            raise unread(path, error, f"{path} is missing, so the index is damaged; {AGAIN}") from None
        if actual != size:
            raise InputError(f"{path} has {actual:,} bytes where {size:,} belong, so the index is damaged; {AGAIN}")
        if name in content and fingerprint(path, size=16) != digest:
            raise InputError(f"{path} has other content than was written, so the index is damaged; {AGAIN}")
    return generation
