"""An index's folder: a manifest that names the generation in force, and the files of that generation."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nestling import atomic
from nestling.config.fingerprint import fingerprint
from nestling.config.manifests import read_json, shaped
from nestling.errors import InputError, unread
from nestling.retrieval.fusion import Fusion

MANIFEST = "manifest.json"
FORMAT = 1
TABLE, CODES, SCALES, CODEC = "documents.parquet", "codes.npy", "scales.npy", "codec.safetensors"
VECTORS, INVERTED, LEXICAL = "vectors.npy", "inverted.faiss", "bm25"
AGAIN = "make it anew with nestling index --rebuild"


@dataclass(frozen=True)
class Manifest:
    """What an index is made of.

    Attributes:
        generation: name of the folder with the files.
        model: what it was made with, as the user gave it; a model that lies in the index's folder `model` goes first.
        fingerprint: of that model.
        documents: how many.
        dim: of the vectors that rescore.
        shortlist: length of the shortlist, in candidates, for the top 10.
        lists: of an inverted file that a search looks into; 0 where codes are scanned.
        warning: what is searched instead of what was asked for, since that missed the target; empty otherwise.
        agreement: share of the exact top 10 that a search by the two numbers above found when they were chosen; None
            where nothing was left out.
        fusion: weight of BM25 and how it was scaled; None without BM25, or where no weight is known.
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

    def write(self, folder: Path) -> None:
        """Put this generation in force."""
        atomic.write_json(folder / MANIFEST, {"format": FORMAT, **asdict(self)})


def read_manifest(folder: Path) -> Manifest:
    """Read an index's manifest.

    Raises:
        InputError: the folder is no index, of another format, or damaged.
    """
    path = folder / MANIFEST
    if folder.is_file():
        raise InputError(f"{folder} is a file; give the folder of an index")
    missing = f"{folder} is no index: it has no {MANIFEST}; make one with nestling index"
    values = read_json(path, Any, advice=AGAIN, missing=missing)
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise InputError(f"{path} is of another format than {FORMAT}; {AGAIN}")
    found: Manifest = shaped(values, Manifest, str(path), AGAIN)
    for name, least in (("documents", 1), ("dim", 1), ("shortlist", 1), ("lists", 0)):
        if getattr(found, name) < least:
            raise InputError(f"{path}: {name} must be {least} or more, not {getattr(found, name)}; {AGAIN}")
    for name in (found.generation, *found.files):
        if not name.isprintable() or not PurePosixPath(name).parts or {"..", "/"} & set(PurePosixPath(name).parts):
            raise InputError(f"{path} names {name!a}, which is no file of an index; {AGAIN}")
    if found.fusion is not None:
        try:
            Fusion.from_dict(found.fusion)
        except (InputError, OverflowError) as error:
            raise InputError(f"{path}: fusion: {error}; {AGAIN}") from None
    return found


def describe(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and BLAKE2b of every file under a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, fingerprint(path, size=16))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check(folder: Path, manifest: Manifest, *, content: bool | Container[str] = False) -> Path:
    """Hold the files of the generation in force against the manifest; return its folder.

    Args:
        content: read every file, or those that are named, and compare the BLAKE2b too; sizes are always compared.

    Raises:
        InputError: a file is missing, of another size or of other content.
    """
    generation = folder / manifest.generation
    for name, (size, digest) in manifest.files.items():
        path = generation / name
        try:
            there = path.stat().st_size
        except OSError as error:
            raise unread(path, error, f"{path} is missing, so the index is damaged; {AGAIN}") from None
        if there != size:
            raise InputError(f"{path} has {there:,} bytes where {size:,} belong, so the index is damaged; {AGAIN}")
        if (content if isinstance(content, bool) else name in content) and fingerprint(path, size=16) != digest:
            raise InputError(f"{path} has other content than was written, so the index is damaged; {AGAIN}")
    return generation
