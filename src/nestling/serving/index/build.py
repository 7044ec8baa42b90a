"""Build an index, or bring one up to date: only new and changed documents are encoded, and a stopped call goes on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nestling import atomic
from nestling.environment import VERSION
from nestling.errors import InputError
from nestling.judgments.catalogue import OWN, Catalogue, load_catalogue
from nestling.models.cached_encoder import read_entry, texts_fingerprint, write_entry
from nestling.models.encoder import Encoder, open_encoder, prepare
from nestling.progress import Observer
from nestling.retrieval.bm25 import Lexical
from nestling.retrieval.codec import Codec
from nestling.retrieval.fusion import Fusion
from nestling.serving.index import documents, files, shortlist
from nestling.serving.index.files import Manifest
from nestling.serving.index.settings import IndexSettings, study_fusion, study_queries

logger = logging.getLogger(__name__)

CALIBRATED_ON = 256
WORK = ".work"
CHUNK = 4_096
"""Texts encoded between two saves: what an interruption can cost."""
ROWS = 65_536
TAKEN_OVER = (files.VECTORS, files.TABLE, files.CODEC)
"""Files that an update reads of the index that is there, so checked by content: damage would get fresh checksums."""
Chunk = tuple[Sequence[str], Path]
"""Texts and the file of their vectors, (n, dim) float16."""


@dataclass(frozen=True)
class Indexed:
    """Summary of a call: distinct texts encoded, documents kept and removed, and a document's bytes in memory."""

    path: Path
    manifest: Manifest
    encoded: int
    kept: int
    removed: int
    bytes_in_memory: float


def index(
    encoder: Encoder | str | Path,
    catalogue: Catalogue | str | Path,
    out: Path | str,
    *,
    model: str | None = None,
    settings: IndexSettings | None = None,
    fusion: Fusion | None = None,
    queries: Sequence[str] | None = None,
    rebuild: bool = False,
    observer: Observer | None = None,
) -> Indexed:
    """Write an index of a catalogue, or bring the one that is there up to date.

    All files are written into a new folder, which one rename of the manifest puts in force: whoever searches meanwhile
    has the old index whole. Vectors of unchanged texts are taken over; each chunk of the others is saved as it is
    encoded, so that a second call goes on after the last.

    Args:
        encoder: an encoder, with its name as `model`, or a model's name for `open_encoder`.
        catalogue: documents, or their source for `load_catalogue`.
        fusion: how BM25 is added; by default as the study of a run's model chose it.
        queries: for which a search is to meet the target; by default a run's model takes those of its dev side, and
            any other a few words of documents, which need longer shortlists than what people type.
        rebuild: take nothing over, and replace what is there even where it was made by another model.
    """
    observer, settings, out = observer or Observer(), settings or IndexSettings(), Path(out)
    if isinstance(encoder, str | Path):
        model = model or str(encoder)
        encoder = open_encoder(encoder)
    if model is None:
        raise ValueError("an encoder needs the name of its model beside it")
    if Path(model).expanduser().is_dir():
        # Whoever opens the index may stand in another folder.
        model = str(Path(model).expanduser().resolve())
    if isinstance(catalogue, str | Path):
        catalogue = load_catalogue(catalogue)
    if fusion is None and settings.bm25:
        fusion = study_fusion(model)
    if queries is None:
        queries = study_queries(model) or ()
    frame = catalogue.frame
    texts = frame["document"].to_list()
    with files.locked(out, {files.MANIFEST, files.LOCK, WORK, "model"}, "index", "an index"):
        old = None if rebuild else _earlier(out, encoder, settings)
        dim, precision = settings.cell(len(texts), encoder.dim, encoder.codec)
        # An inverted file holds no floating-point numbers.
        inverted = len(texts) > settings.exact_up_to and precision not in ("float32", "float16")
        if inverted:
            # Missing, it is refused before hours of encoding, not after.
            shortlist.library()
        in_force = None
        with suppress(InputError):
            in_force = files.read_manifest(out).generation
        _tidy(out, {in_force})
        generation = f"{max((int(path.name) for path in out.iterdir() if path.name.isdigit()), default=0) + 1:06d}"
        before = out / old.generation if old else None
        table = pl.read_parquet(before / files.TABLE, columns=list(OWN)) if before else frame.clear()
        known, distinct = set(table["document"]), list(dict.fromkeys(texts))
        missing = [text for text in distinct if text not in known]
        prepare(encoder, lambda: distinct, queries=queries, texts=len(missing))
        chunks = _encode_chunks(encoder, missing, out / WORK / encoder.fingerprint, observer)
        if before:
            chunks.append((table["document"].to_list(), before / files.VECTORS))
        with atomic.new_folder(out / generation) as folder:
            vectors = _write_vectors(folder / files.VECTORS, texts, encoder.dim, chunks)
            codec, calibrated = shortlist.write_shortlist(
                folder,
                vectors,
                encoder.codec or _codec(vectors, dim, precision, before),
                _calibration_queries(encoder, queries, texts),
                inverted=inverted,
                target=settings.target,
                observer=observer,
            )
            del vectors
            with atomic.new_file(folder / files.TABLE) as temporary:
                frame.write_parquet(temporary)
            fields = {name: frame[name].to_list() for name in catalogue.fields}
            documents.write(folder, frame["document_id"].to_list(), texts, fields)
            has_lexical = settings.bm25 and _write_lexical(folder, texts, settings.language, observer)
            manifest = Manifest(
                generation=generation,
                model=model,
                fingerprint=encoder.fingerprint,
                documents=len(texts),
                dim=encoder.dim,
                **vars(calibrated),
                fusion=fusion.as_dict() if fusion and has_lexical else None,
                fields=catalogue.fields,
                settings=asdict(settings),
                source=catalogue.source,
                version=VERSION,
                files=files.describe(folder),
            )
        files.write_manifest(out, manifest)
        shutil.rmtree(out / WORK, ignore_errors=True)
        # The generation before stays, as a reader may just have read its name.
        _tidy(out, {generation, in_force})
    logger.info("index %s: %d documents, %d texts encoded", out, len(texts), len(missing))
    return Indexed(
        out,
        manifest,
        encoded=len(missing),
        kept=sum(text in known for text in texts),
        removed=len(set(table["document_id"]) - set(frame["document_id"])),
        bytes_in_memory=manifest.bytes_per_document(codec),
    )


def _earlier(out: Path, encoder: Encoder, settings: IndexSettings) -> Manifest | None:
    """Return the manifest of the index to bring up to date, which must be whole, of this model and shortlist."""
    if not (out / files.MANIFEST).exists():
        return None
    old = files.read_manifest(out)
    files.check(out, old, content=TAKEN_OVER)
    codes = old.settings.get("shortlist")
    if old.fingerprint == encoder.fingerprint and codes == settings.shortlist:
        return old
    difference = f"has a shortlist of {codes}, not {settings.shortlist}"
    if old.fingerprint != encoder.fingerprint:
        difference = f"was made with another model ({old.model})"
    raise InputError(f"{out} {difference}; give another folder, or --rebuild to replace it")


def _codec(vectors: NDArray[np.float16], dim: int, precision: str, before: Path | None) -> Codec:
    """Return the earlier index's codec where it still fits, else a fitted one."""
    if before is not None:
        codec = Codec.load(before / files.CODEC)
        # A catalogue that has grown may be past what is scanned whole.
        if (codec.dim, codec.precision) == (dim, precision):
            return codec
    return shortlist.fit(vectors, dim, precision)


def _calibration_queries(encoder: Encoder, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
    """Return vectors of some of the queries, evenly spaced; without any, of a few words of documents."""
    if queries:
        return encoder.encode(queries[:: -(-len(queries) // CALIBRATED_ON)], kind="query")
    from nestling.training.batches.pseudo_queries import crop

    rng = np.random.default_rng(0)
    return encoder.encode([crop(text, rng) for text in texts[:: -(-len(texts) // CALIBRATED_ON)]], kind="query")


def _write_lexical(folder: Path, texts: Sequence[str], language: str, observer: Observer) -> bool:
    observer.stage("bm25")
    try:
        Lexical.fit(texts, language=language).save(folder / files.LEXICAL)
    except InputError as error:
        observer.note(f"no BM25: {error}")
        return False
    return True


def _tidy(out: Path, kept: Container[str | None]) -> None:
    """Remove other generations, and what a killed call left."""
    for path in out.iterdir():
        if path.name not in kept and (path.name.isdigit() or path.name.endswith((".part", ".old"))):
            shutil.rmtree(path, ignore_errors=True)


def _encode_chunks(encoder: Encoder, texts: Sequence[str], work: Path, observer: Observer) -> list[Chunk]:
    """Encode distinct texts chunk by chunk into files under `work`; whole ones of an earlier call are kept."""
    chunks = []
    if texts:
        observer.stage("encode", f"{len(texts):,} texts")
    try:
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            path = work / f"{texts_fingerprint(chunk)}.npy"
            if read_entry(path, len(chunk), np.float16) is None:
                write_entry(path, encoder.encode(chunk, kind="document").astype(np.float16))
            chunks.append((chunk, path))
            observer.encoding("", start + len(chunk), len(texts))
    finally:
        observer.done()
    return chunks


def _write_vectors(path: Path, texts: Sequence[str], dim: int, chunks: Sequence[Chunk]) -> NDArray[np.float16]:
    """Write a vector for each document, (len(texts), dim) float16, and return the file mapped for reading.

    Every text is in one of the chunks. Raises OSError where the disk has no room.
    """
    vectors: Any = np.lib.format.open_memmap(path, "w+", np.float16, (len(texts), dim))
    atomic.reserve(path)
    place = {text: n for n, text in enumerate(chain.from_iterable(chunk for chunk, _ in chunks))}
    places = np.array([place[text] for text in texts], dtype=np.int64)
    order = np.argsort(places, kind="stable")
    start = 0
    for chunk, file in chunks:
        first, last = np.searchsorted(places, [start, start + len(chunk)], sorter=order)
        source = np.load(file, mmap_mode="r")
        for block in range(first, last, ROWS):
            rows = order[block : min(block + ROWS, last)]
            vectors[rows] = source[places[rows] - start]
        start += len(chunk)
    vectors.flush()
    del vectors
    mapped: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return mapped
