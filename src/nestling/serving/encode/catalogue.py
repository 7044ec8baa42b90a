"""Encodes a catalogue of any size into a folder of Parquet files, partition by partition; a stopped call goes on."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from nestling.config.names import MAX_UNPACKED
from nestling.environment import needed, versions
from nestling.errors import InputError
from nestling.models.encoder import Encoder, open_encoder
from nestling.progress import Observer
from nestling.serving.encode.files import (
    MANIFEST,
    EncodedFolder,
    Part,
    Recipe,
    input_fingerprint,
    part_fingerprint,
    part_name,
    read_encoded,
    text_hashes,
)
from nestling.serving.encode.partitions import Slice, Source, open_source
from nestling.serving.encode.ray_engine import Cluster, encode_on_ray, ray_cluster
from nestling.serving.encode.worker import Job, Worker, runtime_of

logger = logging.getLogger(__name__)

Precision = Literal["float32", "float16"]
LOCK, WORK = ".lock", ".work"


@dataclass(frozen=True)
class EncodeSettings:
    """How a catalogue is encoded.

    Attributes:
        partition: most documents of a file.
        batch: texts of a forward pass.
        dim: of the vectors, cut and brought back to length 1; None keeps the model's.
        precision: in which they are stored.
        threads: of an encoder; None takes the folder's where there is one, else what the machine has. A setting like
            the others, since an engine may add in another order with another number.

    Raises:
        InputError: a number below 1, or an unknown precision.
    """

    partition: int = 50_000
    batch: int = 64
    dim: int | None = None
    precision: Precision = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("partition", "batch", "dim", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be 1 or more, not {value}")
        if self.precision not in ("float32", "float16"):
            raise InputError(f"--precision {self.precision!r}: give float32 or float16")


@dataclass(frozen=True)
class Encoded:
    """What a call did.

    Attributes:
        folder: as it is now, complete.
        encoded: partitions that were encoded.
        kept: partitions that were there before.
        workers: encoders that worked at once.
    """

    folder: EncodedFolder
    encoded: int
    kept: int
    workers: int


def encode_catalogue(
    model: str,
    source: str | Path,
    out: Path,
    *,
    settings: EncodeSettings | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
    document: Sequence[str] = (),
    document_id: str | None = None,
    max_unpacked: int = MAX_UNPACKED,
    observer: Observer | None = None,
) -> Encoded:
    """Encode a catalogue's documents, or what has changed of them since the last call.

    A partition is encoded in one call of the encoder and written as one file, which says what it was made from. The
    engines differ only in where that call takes place, so they give the same bits on the same kind of machine.

    Args:
        model: as `open_encoder` takes it; under Ray it has to lead to the same model on every machine.
        source: as `load_catalogue` takes it; or a folder of Parquet files, which is read partition by partition. There
            each file is cut by itself, each row is a document, and an id that comes twice stays twice.
        out: the folder; under Ray on several machines it and the catalogue have to be on a disk that all share.
        engine: `local` encodes in this process; `ray` on a cluster, by default one of this machine's own.
        address: of the cluster.
        workers: of the cluster; by default as many as there is room for.
        document, document_id: columns, by default those with usual names.
        max_unpacked: MiB that a packed catalogue may unpack to.

    Raises:
        InputError: the source or the model cannot be read; `out` is something else, was encoded with another model or
            other settings, or another call works on it; the cluster does not answer or has too few CPUs.
    """
    settings, observer = settings or EncodeSettings(), observer or Observer()
    if engine == "local" and (address is not None or workers is not None):
        raise InputError("--address and --workers are for --engine ray; local encodes in one process")
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be 1 or more, not {workers}")
    needed("nestling encode", "pyarrow")
    work = out / WORK
    with _locked(out), ExitStack() as stack:
        earlier = read_encoded(out) if (out / MANIFEST).exists() else None
        shutil.rmtree(work, ignore_errors=True)
        # Before the cluster, so that it goes after Ray's workers have.
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        cluster = stack.enter_context(ray_cluster(address, cpus=_cores())) if engine == "ray" else None
        threads = _threads(settings, earlier, cluster, workers)
        encoder = open_encoder(model, threads=threads)
        recipe = _recipe(encoder, settings, threads)
        if earlier is not None:
            _check_same(out, earlier, model, recipe)
        workers = _workers(recipe, cluster, workers, observer)
        opened = open_source(
            source,
            work,
            partition=settings.partition,
            document=document,
            document_id=document_id,
            max_unpacked=max_unpacked,
        )
        for note in opened.notes:
            observer.note(note)
        return _encode(model, opened, out, recipe, encoder, cluster, workers, observer)


def _encode(
    model: str,
    source: Source,
    out: Path,
    recipe: Recipe,
    encoder: Encoder,
    cluster: Cluster | None,
    workers: int,
    observer: Observer,
) -> Encoded:
    _remove(out.glob(".part-*.part.parquet"))
    observer.stage("look at what is there", f"{len(source.slices):,} partitions")
    parts = {part: made for part in source.slices if (made := _kept(out, source, part, recipe)) is not None}
    kept = len(parts)
    folder = EncodedFolder(model, source.name, recipe, False, tuple(parts.values()), versions())
    folder.write(out)
    missing = [part for part in source.slices if part not in parts]
    total = sum(part.rows for part in missing)
    if missing:
        where = "in this process" if cluster is None else f"on Ray, {workers} workers of {recipe.threads} CPUs"
        observer.stage("encode", f"{total:,} documents in {len(missing):,} partitions, {where}")
        # Ray's workers have another working directory.
        name = str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model
        job = Job(name, out.expanduser().resolve(), source, recipe)
        done = 0
        try:
            for part, made in (
                _encode_here(Worker(job, encoder), missing, total, observer)
                if cluster is None
                else encode_on_ray(job, missing, workers=workers)
            ):
                parts[part] = made
                done += part.rows
                observer.encoding("", done, total)
        finally:
            observer.done()
    folder = replace(folder, partitions=tuple(parts[part] for part in source.slices), complete=True)
    folder.write(out)
    listed = {part.file for part in folder.partitions}
    _remove(path for path in out.glob("part-*.parquet") if path.name not in listed)
    logger.info("encoded %s: %d partitions, %d kept", out, len(missing), kept)
    return Encoded(folder, len(missing), kept, workers)


def _encode_here(
    worker: Worker, slices: Sequence[Slice], total: int, observer: Observer
) -> Iterator[tuple[Slice, Part]]:
    before = 0
    for part in slices:

        def progress(done: int, _: int, before: int = before) -> None:
            observer.encoding("", min(before + done, total), total)

        yield part, worker.encode(part, progress)
        before += part.rows


def _kept(out: Path, source: Source, part: Slice, recipe: Recipe) -> Part | None:
    """Return a partition that is there and was made from what would be encoded now."""
    name = part_name(part.number)
    found = part_fingerprint(out / name)
    if found is None:
        return None
    ids, texts = source.read(part)
    return Part(name, len(ids), found) if input_fingerprint(recipe, ids, text_hashes(texts)) == found else None


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the vectors")
    if out.is_dir() and not any((out / name).exists() for name in (MANIFEST, LOCK)) and any(out.iterdir()):
        raise InputError(f"{out} holds something else than vectors, so nothing is written there; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out / LOCK).acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another nestling encode works on it; wait for it to end") from None
    with lock:
        yield


def _recipe(encoder: Encoder, settings: EncodeSettings, threads: int) -> Recipe:
    dim = settings.dim or encoder.dim
    if dim > encoder.dim:
        raise InputError(f"--dim {dim}: the model's vectors have {encoder.dim}; give 1 to {encoder.dim}")
    runtime, device = runtime_of(encoder)
    return Recipe(
        encoder.fingerprint, runtime, device, dim, settings.precision, settings.partition, settings.batch, threads
    )


def _check_same(out: Path, earlier: EncodedFolder, model: str, recipe: Recipe) -> None:
    old, new = asdict(earlier.recipe), asdict(recipe)
    if old["fingerprint"] != new["fingerprint"]:
        raise InputError(
            f"{out} was encoded with another model ({earlier.model}), not with {model} as it is now; "
            "give another folder, or remove this one"
        )
    other = [f"{name} {old[name]}, not {new[name]}" for name in new if old[name] != new[name]]
    if other:
        raise InputError(f"{out} was encoded with {'; '.join(other)}; give another folder, or remove this one")


def _threads(
    settings: EncodeSettings, earlier: EncodedFolder | None, cluster: Cluster | None, workers: int | None
) -> int:
    if settings.threads is not None:
        return settings.threads
    if earlier is not None:
        return earlier.recipe.threads
    if cluster is not None and workers is not None:
        return max(1, min(sum(cluster.cpus) // workers, max(cluster.cpus, default=1)))
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else _cores()


def _workers(recipe: Recipe, cluster: Cluster | None, asked: int | None, observer: Observer) -> int:
    if cluster is None:
        return 1
    gpu = recipe.device == "cuda"
    room = cluster.capacity(recipe.threads, gpu=gpu)
    if room == 0:
        what = f"{recipe.threads} CPUs" + (" and a GPU" if gpu else "")
        raise InputError(f"no machine of the Ray cluster has {what}, which a worker takes; give --threads, fewer")
    if asked is not None and asked > room:
        observer.note(f"{room} workers, not {asked}: the cluster has room for no more of {recipe.threads} CPUs")
    return min(asked or room, room)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _remove(paths: Iterator[Path]) -> None:
    for path in list(paths):
        path.unlink(missing_ok=True)
