"""Builds an index, or brings one up to date: only new and changed documents are encoded, and a stopped call goes on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from nestling import atomic
from nestling.environment import VERSION
from nestling.errors import InputError
from nestling.judgments.catalogue import OWN, Catalogue, load_catalogue
from nestling.models.encoder import Encoder, open_encoder, prepare
from nestling.progress import Observer
from nestling.retrieval.bm25 import Lexical
from nestling.retrieval.codec import Codec
from nestling.retrieval.fusion import Fusion
from nestling.serving.index import documents, files, shortlist
from nestling.serving.index.files import Manifest
from nestling.serving.index.settings import IndexSettings, study_fusion, study_queries
from nestling.serving.index.vectors import encode_chunks, write_vectors

logger = logging.getLogger(__name__)

CALIBRATED_ON = 256
WORK = ".work"
TAKEN_OVER = (files.VECTORS, files.TABLE, files.CODEC)
"""What an update reads of the index that is there, so checked by content: damage would get fresh checksums."""


@dataclass(frozen=True)
class Indexed:
    """What a call did.

    Attributes:
        encoded: distinct texts that had to be encoded.
        kept: documents whose vectors were there before.
        removed: documents of the earlier index that the catalogue no longer has.
        bytes_in_memory: a document, of what a search holds in memory (the rest is read from files).
    """

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

    All files are written into a new folder beside those in force, and one rename of the manifest puts them in force:
    whoever searches meanwhile has the old index whole, and after a crash it is still there. Vectors of documents whose
    text has not changed are taken over; of the others each chunk is saved as it is encoded, so that a second call goes
    on after the last.

    Args:
        encoder: what encodes, or the model's name: see `open_encoder`.
        catalogue: documents, or their source: see `load_catalogue`.
        model: the name of an encoder that is given as such, for whoever opens the index.
        fusion: how BM25 is added; by default as the study of a run's model chose it.
        queries: for which a search is to find what it should; by default a run's model takes those of its dev side,
            and any other a few words of documents, which ask for longer shortlists than what people type.
        rebuild: take nothing over, and replace what is there even where it was made by another model.

    Raises:
        InputError: `out` is something else, or was made with another model or other settings; or another call works
            on it.
        ValueError: an encoder without its model's name.
    """
    observer, settings, out = observer or Observer(), settings or IndexSettings(), Path(out)
    if isinstance(encoder, str | Path):
        model = model or str(encoder)
        encoder = open_encoder(encoder)
    if model is not None and Path(model).expanduser().is_dir():
        # Whoever opens the index may stand in another folder.
        model = str(Path(model).expanduser().resolve())
    if model is None:
        raise ValueError("an encoder needs the name of its model beside it")
    if isinstance(catalogue, str | Path):
        catalogue = load_catalogue(catalogue)
    if fusion is None and settings.bm25:
        fusion = study_fusion(model)
    if queries is None:
        queries = study_queries(model)
    with _locked(out):
        old = None if rebuild else _earlier(out, encoder, settings)
        builder = _Builder(encoder, catalogue, out, model, settings, fusion, queries, observer)
        return builder.build(old)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    if out.is_file():
        raise InputError(f"{out} is a file; give a folder for the index")
    known = {files.MANIFEST, WORK, ".lock", "model"}
    if out.is_dir() and not any((out / name).exists() for name in known) and any(out.iterdir()):
        raise InputError(f"{out} holds something else than an index, so nothing is written there; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another nestling index works on it; wait for it to end") from None
    try:
        yield
    finally:
        lock.release()


def _earlier(out: Path, encoder: Encoder, settings: IndexSettings) -> Manifest | None:
    if not (out / files.MANIFEST).exists():
        return None
    old = files.read_manifest(out)
    files.check(out, old, content=TAKEN_OVER)
    if old.fingerprint != encoder.fingerprint:
        raise InputError(
            f"{out} was made with another model ({old.model}); give another folder, or --rebuild to replace it"
        )
    if old.settings.get("shortlist") != settings.shortlist:
        raise InputError(
            f"{out} has a shortlist of {old.settings.get('shortlist')}, not {settings.shortlist}; give another folder, "
            "or --rebuild to replace it"
        )
    return old


@dataclass(eq=False)
class _Builder:
    """One call of `index`."""

    encoder: Encoder
    catalogue: Catalogue
    out: Path
    model: str
    settings: IndexSettings
    fusion: Fusion | None
    queries: Sequence[str] | None
    observer: Observer

    def build(self, old: Manifest | None) -> Indexed:
        frame = self.catalogue.frame
        texts = frame["document"].to_list()
        if self._is_inverted(len(texts)):
            # Said before hours of encoding, not after.
            shortlist.library()
        before = None
        with suppress(InputError):
            before = files.read_manifest(self.out).generation
        self._tidy({before})
        taken = [int(path.name) for path in self.out.iterdir() if path.name.isdigit()]
        generation = f"{int(old.generation) + 1 if old else max(taken, default=0) + 1:06d}"
        ids, known = self._known(old)
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        missing = [text for text in place if text not in known]
        prepare(self.encoder, lambda: list(place), queries=self.queries or (), texts=len(missing))
        fresh = encode_chunks(self.encoder, missing, self.out / WORK / self.encoder.fingerprint, self.observer)
        with atomic.new_folder(self.out / generation) as folder:
            earlier = None if old is None else self.out / old.generation / files.VECTORS
            vectors = write_vectors(
                folder / files.VECTORS, texts, dim=self.encoder.dim, known=known, before=earlier, fresh=fresh
            )
            codec, chosen, warning = self._shortlist(folder, vectors, self._codec(vectors, old), texts)
            self._documents(folder)
            lexical = self._lexical(folder, texts)
            del vectors
            manifest = Manifest(
                generation=generation,
                model=self.model,
                fingerprint=self.encoder.fingerprint,
                documents=len(texts),
                dim=self.encoder.dim,
                shortlist=chosen.shortlist,
                lists=chosen.lists,
                agreement=chosen.agreement,
                warning=warning,
                fusion=self.fusion.as_dict() if self.fusion and lexical else None,
                fields=self.catalogue.fields,
                settings=asdict(self.settings),
                source=self.catalogue.source,
                version=VERSION,
                files=files.describe(folder),
            )
        manifest.write(self.out)
        shutil.rmtree(self.out / WORK, ignore_errors=True)
        self._tidy({generation, before})
        kept = sum(text in known for text in texts)
        removed = len(ids - set(frame["document_id"]))
        memory = codec.bytes_per_vector if not chosen.lists else manifest.files[files.INVERTED][0] / len(texts)
        logger.info("index %s: %d documents, %d texts encoded", self.out, len(texts), len(missing))
        return Indexed(self.out, manifest, len(missing), kept, removed, float(memory))

    def _is_inverted(self, n: int) -> bool:
        own = self.encoder.codec
        precision = own.precision if own is not None else self.settings.cell(n, self.encoder.dim)[1]
        return self.settings.is_inverted(n, precision)

    def _shortlist(
        self, folder: Path, vectors: NDArray[np.float16], codec: Codec, texts: Sequence[str]
    ) -> tuple[Codec, shortlist.Calibrated, str]:
        """Write what finds candidates: the first of an inverted file, codes and whole vectors that meets the target.

        Returns:
            The codec, how it is searched, and what to warn of.
        """
        questions, target = self._questions(texts), self.settings.target
        missed, instead = [], "all codes"
        exact = self._exact(folder, vectors, codec)
        if self._is_inverted(len(texts)):
            self.observer.stage("inverted file", f"{len(texts):,} documents")
            inverted = shortlist.build_inverted(vectors, exact, folder / files.INVERTED)
            self.observer.stage("choose the shortlist's length")
            chosen = shortlist.calibrate(questions, vectors, exact, inverted, target=target)
            if chosen.agreement >= target:
                return codec, chosen, ""
            missed.append(f"an inverted file found {chosen.agreement:.1%}")
            (folder / files.INVERTED).unlink()
        self.observer.stage("choose the shortlist's length")
        chosen = shortlist.calibrate(questions, vectors, exact, None, target=target)
        if chosen.agreement < target:
            missed.append(f"{codec.dim} dims of {codec.precision}, all scanned, {chosen.agreement:.1%}")
            instead, codec = "whole vectors", Codec("float16", self.encoder.dim)
            exact = self._exact(folder, vectors, codec)
            chosen = shortlist.calibrate(questions, vectors, exact, None, target=target)
        if not missed:
            return codec, chosen, ""
        warning = (
            f"{' and '.join(missed)} of the exact top 10 where the target is {target:.1%}, so a search scans "
            f"{instead}, which is slower and takes more memory; a lower --target allows the other"
        )
        self.observer.note(f"warning: {warning}")
        logger.warning("index %s: %s", self.out, warning)
        return codec, chosen, warning

    def _known(self, old: Manifest | None) -> tuple[set[str], dict[str, int]]:
        """Return the ids of the earlier index, and its texts with the rows of their vectors."""
        if old is None:
            return set(), {}
        table = pl.read_parquet(self.out / old.generation / files.TABLE, columns=list(OWN))
        return set(table["document_id"]), {text: row for row, text in enumerate(table["document"])}

    def _codec(self, vectors: NDArray[np.float16], old: Manifest | None) -> Codec:
        if self.encoder.codec is not None:
            return self.encoder.codec
        dim, precision = self.settings.cell(len(vectors), self.encoder.dim)
        if old is not None:
            before = Codec.load(self.out / old.generation / files.CODEC)
            # A catalogue that has grown may be past what is scanned whole.
            if (before.dim, before.precision) == (dim, precision):
                return before
        return shortlist.fit(vectors, dim, precision)

    def _exact(self, folder: Path, vectors: NDArray[np.float16], codec: Codec) -> shortlist.Exact:
        """Write the codec and its codes, made of the vectors as they are stored, so that updates change none."""
        codec.save(folder / files.CODEC)
        (folder / files.SCALES).unlink(missing_ok=True)
        codes = shortlist.encode(vectors, codec)
        np.save(folder / files.CODES, codes.data)
        if codes.scales is not None:
            np.save(folder / files.SCALES, codes.scales)
        return shortlist.Exact(codec, codes)

    def _questions(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return vectors of the queries to choose by, evenly spaced; without any, of a few words of documents."""
        if self.queries:
            return self.encoder.encode(self.queries[:: -(-len(self.queries) // CALIBRATED_ON)], kind="query")
        from nestling.training.batches.pseudo_queries import crop

        rng = np.random.default_rng(0)
        some = texts[:: -(-len(texts) // CALIBRATED_ON)]
        return self.encoder.encode([crop(text, rng) for text in some], kind="query")

    def _documents(self, folder: Path) -> None:
        frame = self.catalogue.frame
        with atomic.new_file(folder / files.TABLE) as temporary:
            frame.write_parquet(temporary)
        fields = {name: frame[name].to_list() for name in self.catalogue.fields}
        documents.write(folder, frame["document_id"].to_list(), frame["document"].to_list(), fields)

    def _lexical(self, folder: Path, texts: Sequence[str]) -> bool:
        if not self.settings.bm25:
            return False
        self.observer.stage("bm25")
        try:
            Lexical.fit(texts, language=self.settings.language).save(folder / files.LEXICAL)
        except InputError as error:
            self.observer.note(f"no BM25: {error}")
            return False
        return True

    def _tidy(self, kept: Container[str | None]) -> None:
        """Remove other generations. The one before the one in force stays, as a reader may just have read its name."""
        for path in self.out.iterdir():
            if path.name not in kept and (path.name.isdigit() or path.name.endswith((".part", ".old"))):
                shutil.rmtree(path, ignore_errors=True)
